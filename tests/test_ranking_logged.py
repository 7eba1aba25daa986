"""A Ranking is enough for its log row: what it was asked for travels with it, and stays its own."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logs import catalog, drain

import fastrank as fr
from fastrank import ope
from fastrank.eventlog import LogReader, LogWriter, bias_id
from fastrank.policies import Law
from fastrank.ranking import Ranking

USERS = ["ann", "bob"]
FACTORS = [0.5, 2.0]
QUERY = [0.5, -1.0, 0.25, 2.0]
PL = fr.PlackettLuce(0.5)


def make_model(prior: bool = False, text: bool = False, factors: Any = FACTORS) -> fr.Model:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((30, 4))
    ids: Any = [f"item {i}" for i in range(30)] if text else np.arange(100, 130)
    order = rng.permutation(30).astype(float) if prior else None
    items = fr.Catalog(ids, vectors, prior=order)
    users = rng.standard_normal((2, 4))
    return fr.Model(items, USERS, users, user_temperatures=factors)


def ids_of(model: fr.Model, *rows: int) -> list[Any]:
    return [model.catalog.item_ids[row].item() for row in rows]


class TestComplete:
    @pytest.mark.parametrize("text", [False, True])
    @pytest.mark.parametrize("prior", [False, True])
    @pytest.mark.parametrize("inline", [64, 2])
    def test_of_a_recommendation(
        self, text: bool, prior: bool, inline: int, tmp_path: Path
    ) -> None:
        """With user temperatures, filters and a bias: the row alone gives the propensities."""
        model = make_model(prior, text)
        exclude, allow = ids_of(model, 3, 4, 5), ids_of(model, *range(20))
        bias = np.linspace(-1.0, 1.0, 30)
        policies: list[fr.Policy] = [
            PL, fr.PlackettLuce(0.5, sampler="cached"), fr.EpsilonGreedy(0.3),
            fr.BestFirst(2, fr.PlackettLuce(2.0)), fr.Uniform(),
        ]  # fmt: skip
        with LogWriter(tmp_path, inline_ids=inline) as log:
            for i in range(20):
                ranking = model.recommend(
                    USERS[i % 2], 4, policy=policies[i % 5], seed=i, bias=bias if i % 4 else None,
                    exclude=exclude if i % 3 else None, allow=allow if i % 7 else None,
                )  # fmt: skip
                log.append(ranking, user_id=USERS[i % 2])
        reader = LogReader(tmp_path)
        audit = ope.audit(reader, [model])
        assert audit.passed
        assert audit.sampled == 20
        assert {check.name: check.outcome for check in audit.checks}["seeds draw"] == "passed"
        rows, _ = drain(tmp_path)
        assert {one["k"] for one in rows} == {4}
        assert {one["model_version"] for one in rows} == {model.version}
        assert [one["user_temperature"] for one in rows[:5]] == [0.5, 2.0, None, 2.0, None]
        assert rows[1]["bias_id"] == bias_id(bias)
        assert len(reader.strata) == 4  # gumbel and cached are one law, and no user is a stratum

    def test_k_is_what_was_asked_for(self, tmp_path: Path) -> None:
        """Not the places that the catalog has."""
        items = catalog()
        with LogWriter(tmp_path) as log:
            log.append(items.rank(QUERY, 50, policy=PL, allow=[101, 102]), query=QUERY)
            log.append_batch(items.rank_batch([QUERY], 40, policy=PL), queries=[QUERY])
        rows, reader = drain(tmp_path)
        assert [(one["k"], len(one["item_ids"])) for one in rows] == [(50, 2), (40, 30)]
        assert reader.report.set_aside == {}

    @pytest.mark.parametrize("prior", [False, True])
    def test_of_a_batch(self, prior: bool, tmp_path: Path) -> None:
        model = make_model(prior)
        items = model.catalog
        rng = np.random.default_rng(1)
        queries, biases = rng.standard_normal((4, 4)), rng.standard_normal((4, 30))
        shared = [100, 101]
        exclude, allow = [None, shared, (104,), shared], [None, [*range(100, 110)], None, {105}]
        for bias in (None, biases, biases[0].astype(np.float32)):
            folder = tmp_path / f"{0 if bias is None else bias.ndim}"
            batch = items.rank_batch(queries, 3, policy=PL, exclude=exclude, allow=allow, bias=bias)
            with LogWriter(folder) as log:
                log.append_batch(batch, user_ids=range(4), queries=queries)
            rows, reader = drain(folder)
            assert [one["exclude"] for one in rows] == [None, shared, [104], shared]
            assert [one["allow"] for one in rows] == [None, allow[1], None, [105]]
            audit = ope.audit(reader, [items])
            assert audit.passed
            assert audit.sampled == 4

    def test_nothing_is_asked_of_a_ranking_made_by_hand(self, tmp_path: Path) -> None:
        drawn = catalog().rank(QUERY, 3, policy=PL, seed=1, exclude=[101])
        by_hand = Ranking(
            drawn.item_ids, drawn.scores, drawn.log_propensities, drawn.log_propensity, drawn.seed,
            drawn.policy, drawn.log_norm, drawn.n_eligible, drawn.catalog_version,
        )  # fmt: skip
        with LogWriter(tmp_path) as log:
            with pytest.raises(ValueError, match="k: required"):
                log.append(by_hand)
            log.append(by_hand, k=3, exclude=[101], model_version="m", user_temperature=2.0)
        (logged,), _ = drain(tmp_path)
        assert (logged["k"], logged["exclude"], logged["model_version"]) == (3, [101], "m")
        assert by_hand == drawn


class TestContradictions:
    CASES: tuple[tuple[dict[str, Any], str], ...] = (
        ({"k": 5}, "k: the ranking was made with 4, got 5"),
        ({"exclude": [100]}, r"exclude: the ranking was made with .*103.*, got \[100\]"),
        ({"exclude": []}, r"exclude: the ranking was made with .*103.*, got \[\]"),
        ({"allow": [104, 105]}, r"allow: the ranking was made with .*, got \[104, 105\]"),
        ({"bias": np.zeros(30)}, "bias: the ranking was made with .*, got "),
        ({"bias": np.zeros(3)}, "bias: the ranking was made with .*, got "),
        ({"model_version": "m"}, "model_version: the ranking was made with '.*, got 'm'"),
        ({"user_temperature": 1.0}, "user_temperature: the ranking was made with 2.0, got 1.0"),
    )

    @pytest.mark.parametrize(("given", "words"), CASES)
    def test_are_refused(self, given: dict[str, Any], words: str, tmp_path: Path) -> None:
        """Both are named, and no row is written."""
        model = make_model()
        ranking = model.recommend("bob", 4, policy=PL, exclude=[103], allow=range(100, 120),
                                  bias=np.ones(30))  # fmt: skip
        with LogWriter(tmp_path) as log, pytest.raises(ValueError, match=words):
            log.append(ranking, user_id="bob", **given)
        assert log.rows_written == 0

    def test_a_bias_that_was_not_ranked_by_is_refused(self, tmp_path: Path) -> None:
        """Candidates may be chosen before a call; scores are changed by none but the call."""
        ranking = make_model().recommend("bob", 4, policy=PL)
        words = r"bias: the ranking was made without one; got array"
        with LogWriter(tmp_path) as log, pytest.raises(ValueError, match=words):
            log.append(ranking, user_id="bob", bias=np.ones(30))

    @pytest.mark.parametrize("given", [[], [3], ["item 4"]])
    def test_of_text_are_refused(self, given: list[Any], tmp_path: Path) -> None:
        """None at all and integers are compared with texts, too."""
        ranking = make_model(text=True).recommend("bob", 4, policy=PL, exclude=["item 3"])
        words = r"exclude: the ranking was made with \['item 3'\], got \["
        with LogWriter(tmp_path) as log, pytest.raises(ValueError, match=words):
            log.append(ranking, user_id="bob", exclude=given)

    def test_the_same_in_another_form_is_none(self, tmp_path: Path) -> None:
        model = make_model()
        bias = np.linspace(0.0, 1.0, 30)
        ranking = model.recommend("bob", 4, policy=PL, exclude=[103, 104], bias=bias)
        with LogWriter(tmp_path) as log:
            log.append(
                ranking, k=4, exclude={104, 103}, bias=bias.astype(np.float32).tolist(),
                model_version=model.version, user_temperature=model.user_temperature("bob"),
                allow=range(100, 130),  # candidates that somebody chose before
            )  # fmt: skip
        assert log.rows_written == 1

    def test_in_batches(self, tmp_path: Path) -> None:
        batch = catalog().rank_batch([QUERY] * 2, 3, policy=PL, exclude=[[101], [102]])
        with LogWriter(tmp_path) as log:
            with pytest.raises(ValueError, match="exclude: the ranking was made with"):
                log.append_batch(batch, exclude=[[101], [103]])
            with pytest.raises(ValueError, match="k: the ranking was made with 3, got 4"):
                log.append_batch(batch, k=4)


class TestItsOwn:
    @pytest.mark.parametrize("dtype", [np.int64, np.int32])
    def test_later_changes_are_not_logged(self, dtype: Any, tmp_path: Path) -> None:
        """Of lists, arrays and biases, of one call and of a batch, with and without an order."""
        for prior in (False, True):
            items = make_model(prior).catalog
            array, listed = np.array([100, 101], dtype), [102, 103]
            bias = np.ones(30, np.float32)
            rankings = [
                items.rank(QUERY, 3, policy=PL, exclude=array, allow=None, bias=bias),
                items.rank(QUERY, 3, policy=PL, exclude=listed, bias=bias[::1]),
                *items.rank_batch([QUERY] * 2, 3, policy=PL, exclude=[array, listed], bias=bias),
            ]
            array[:], bias[:] = 129, -7.0
            listed.clear()
            for ranking in rankings:
                assert ranking.bias is not None
                assert (ranking.bias == 1.0).all()
            excluded = [np.asarray(each.exclude).tolist() for each in rankings]
            assert excluded == [[100, 101], [102, 103]] * 2

    def test_what_nobody_can_write_to_is_not_copied(self) -> None:
        items = make_model().catalog
        bias = np.ones(30, np.float32)
        view = bias[:]
        view.flags.writeable = False  # but its base is not
        assert not np.shares_memory(items.rank(QUERY, 3, policy=PL, bias=view).bias, bias)
        bias.flags.writeable = False
        for fixed in (bias, bias[:]):
            assert np.shares_memory(items.rank(QUERY, 3, policy=PL, bias=fixed).bias, bias)
            batch = items.rank_batch([QUERY] * 2, 3, policy=PL, bias=fixed)
            assert np.shares_memory(batch.bias, bias)
        mapped = np.frombuffer(bytearray(120), np.float32)  # whose owner may write
        mapped.flags.writeable = False
        assert not np.shares_memory(items.rank(QUERY, 3, policy=PL, bias=mapped).bias, mapped)

    def test_text_lists_too(self) -> None:
        items = catalog(text=True)
        listed = ["item 1", "item 2"]
        array = np.array(listed)
        rankings = [items.rank(QUERY, 3, policy=PL, exclude=each) for each in (listed, array)]
        listed[0] = array[0] = "item 9"
        assert [np.asarray(each.exclude).tolist() for each in rankings] == [
            ["item 1", "item 2"]
        ] * 2

    def test_copies_and_pickles(self, tmp_path: Path) -> None:
        model = make_model()
        ranking = model.recommend("bob", 4, policy=PL, exclude=[103], bias=np.ones(30))
        batch = model.catalog.rank_batch([QUERY] * 2, 4, policy=PL, exclude=[[103], None])
        with LogWriter(tmp_path) as log:
            for twin in (copy.copy(ranking), copy.deepcopy(ranking),
                         pickle.loads(pickle.dumps(ranking))):  # fmt: skip
                assert twin == ranking
                log.append(twin, user_id="bob")
            twins = pickle.loads(pickle.dumps(batch))
            assert twins == batch
            log.append_batch(twins, user_ids=["bob"] * 2)
        rows, _ = drain(tmp_path)
        assert [one["exclude"] for one in rows] == [[103]] * 4 + [None]
        assert len({str(one["bias_id"]) for one in rows[:3]}) == 1

    def test_equal_if_the_same_was_drawn(self) -> None:
        """Whatever was asked for: fewer places than the catalog has, ids that it does not know."""
        model = make_model(factors=None)
        vector = model.user_vector("ann")
        one = model.recommend("ann", 30, policy=PL, seed=3)
        other = model.catalog.rank(vector, 99, policy=PL, seed=3, exclude=[7])
        assert one == other
        assert hash(one) == hash(other)
        assert (one.k, other.k) == (30, 99)
        assert (one.model_version, other.model_version) == (model.version, None)
        assert one != model.recommend("ann", 30, policy=PL, seed=4)


def test_one_stratum_whoever_states_the_factor(tmp_path: Path) -> None:
    """What was lost by `append` without `user_temperature=`: a stratum a user."""
    model = make_model(factors=[0.7, 1.9])
    for given in (True, False):
        folder = tmp_path / str(given)
        with LogWriter(folder) as log:
            for i in range(6):
                user = USERS[i % 2]
                own = model.user_temperature(user) if given else None
                ranking = model.recommend(user, 3, policy=PL)
                log.append(ranking, user_id=user, user_temperature=own)
        _, reader = drain(folder)
        assert [each.params for each in reader.strata] == [(("temperature", 0.5),)]


def policy_of(**said: Any) -> fr.Policy:
    """A policy of one's own that says so."""
    own = {"inference_type": "own", "law": Law(0.5), "sampler": "epsilon_greedy", "params": {}}
    bare: Any = type("Own", (fr.Policy,), own | said)
    made: fr.Policy = dataclass(frozen=True)(bare)()
    return made


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"inference_type": 3}, "inference_type: expected a str, got 3"),
        ({"inference_type": ""}, "inference_type: must not be empty"),
        ({"inference_type": "\ud800"}, "inference_type: not text that UTF-8 can hold"),
        ({"law_name": None}, "law_name: expected a str, got None"),
        ({"law_name": ""}, "law_name: must not be empty"),
        ({"params": [1.0]}, "expected a policy with params by name, got Own"),
        ({"params": {3: 1.0}}, "parameter of its policy: expected a str, got 3"),
        ({"params": {"a": 10**400}}, "parameter a: must be a finite number, got 1000"),
        ({"params": {"a": np.nan}}, "parameter a: must be a finite number, got nan"),
    ],
)
def test_a_policy_that_cannot_be_logged_is_refused(
    said: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """At once: rows are written later, and then nobody hears of one that is lost."""
    with LogWriter(tmp_path) as log:
        log.append(catalog().rank(QUERY, 3, policy=policy_of()), query=QUERY)
        with pytest.raises(ValueError, match=f"ranking: .*{words}"):
            log.append(catalog().rank(QUERY, 3, policy=policy_of(**said)), query=QUERY)
    rows, reader = drain(tmp_path)
    assert (len(rows), log.rows_dropped, reader.report.set_aside) == (1, 0, {})


@pytest.mark.parametrize("said", [{"law": (0.5, 1.0, 0)}, {"law": "own"}, {"sampler": ["uniform"]}])
def test_what_is_no_law_or_sampler_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"policy: .*Own"):
        catalog().rank(QUERY, 3, policy=policy_of(**said))
