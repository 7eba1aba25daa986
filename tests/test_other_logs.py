"""Logs of the Open Bandit Pipeline and of Vowpal Wabbit: the figures are theirs."""

from __future__ import annotations

import gzip
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("scipy")
from hypothesis import given
from hypothesis import strategies as st
from test_ope_obp import FILE, OBP
from test_ope_obp import NAMES as OBPS

import fastrank as fr
from fastrank import ope
from fastrank.eventlog import ColumnsError, LogReader, from_dsjson, from_obp

# ---- Open Bandit Pipeline -----------------------------------------------------------------------


def actions(places: int | None = None) -> tuple[dict[str, Any], Any]:
    """Single actions as obp logs them, and the law of an evaluation policy."""
    rng = np.random.default_rng(0)
    n, n_actions = 3000, 5
    position = None if places is None else rng.integers(0, places, n)
    shape = (n, n_actions, places or 1)
    law = rng.dirichlet(np.ones(n_actions), (n, places or 1)).transpose(0, 2, 1)
    action = rng.integers(0, n_actions, n)
    feedback = {
        "n_rounds": n,
        "n_actions": n_actions,
        "context": rng.standard_normal((n, 3)),
        "action": action,
        "position": position,
        "reward": rng.random(n) < 0.1 + 0.1 * action,
        "expected_reward": None,
        "pscore": np.full(n, 1 / n_actions),
    }
    assert law.shape == shape
    return feedback, law


@pytest.mark.parametrize("places", [None, 3])
def test_the_law_of_obp_agrees_with_its_propensities(places: int | None) -> None:
    feedback, law = actions(places)
    feedback["pi_b"] = np.full(law.shape, 1 / feedback["n_actions"])
    right = ope.evaluate_table(from_obp(feedback, {"new": law}))
    assert right.policies[0].status == "ok"
    feedback["pscore"][7] = np.nan  # set aside, by its own reason
    assert from_obp(feedback, {"new": law}).policies == {"new": "new"}
    feedback["pi_b"][41, feedback["action"][41]] += 0.05
    feedback["pi_b"][41, feedback["action"][41] - 1] -= 0.05
    with pytest.raises(ValueError, match=r"\['pscore'\]: row 41: 0.2, where .*pi_b.* 0.25 "):
        from_obp(feedback, {"new": law})
    feedback["pi_b"] = feedback["pi_b"][:5]
    with pytest.raises(ValueError, match=r"feedback\['pi_b'\]: expected the probabilities of all"):
        from_obp(feedback, {"new": law})


@pytest.mark.parametrize("places", [None, 3])
def test_single_actions_of_obp(places: int | None) -> None:
    feedback, law = actions(places)
    log = from_obp(feedback, {"new": law, "uniform": fr.Uniform()})
    found = ope.evaluate_table(log)
    assert found.log["set_aside"] == {}
    n = feedback["n_rounds"]
    place = np.zeros(n, int) if places is None else feedback["position"]
    chosen = law[np.arange(n), feedback["action"], place]
    weight, reward = chosen / feedback["pscore"], feedback["reward"].astype(float)
    new, uniform = found.policies
    assert new.estimates["ips"].value == pytest.approx((weight * reward).mean(), rel=1e-12)
    snips = (weight * reward).sum() / weight.sum()
    assert new.estimates["snips"].value == pytest.approx(snips, rel=1e-12)
    assert uniform.estimates["ips"].value == pytest.approx(reward.mean(), rel=1e-12)
    if places is not None:
        (batch,) = LogReader.of_tables(log, columns=["position"])
        assert batch.columns["position"][:, 0].tolist() == feedback["position"].tolist()
    else:
        matrix = ope.evaluate_table(from_obp(feedback, {"new": law[:, :, 0]}))
        assert matrix.policies[0].estimates["ips"] == new.estimates["ips"]


def slates(repeating: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Slates as obp logs them, a row an item, and an evaluation policy's pscores of them."""
    rng = np.random.default_rng(1)
    n, k, n_actions = 2000, 3, 6
    if repeating:
        action = rng.integers(0, n_actions, (n, k))
        conditional = np.full((n, k), 1 / n_actions)
    else:
        action = np.array([rng.permutation(n_actions)[:k] for _ in range(n)])
        conditional = np.tile(1 / (n_actions - np.arange(k)), (n, 1))
    evaluated = np.clip(conditional * rng.uniform(0.5, 1.5, (n, k)), 0, 1)
    feedback = {
        "n_rounds": n,
        "n_unique_action": n_actions,
        "slate_id": np.repeat(np.arange(n), k),
        "context": rng.standard_normal((n, 2)),
        "action": action.ravel(),
        "position": np.tile(np.arange(k), n),
        "reward": rng.random(n * k) < 0.2,
        "pscore_cascade": np.cumprod(conditional, axis=1).ravel(),
        "pscore": np.repeat(conditional.prod(axis=1), k),
        "pscore_item_position": np.full(n * k, 1 / n_actions),
    }
    evaluation = {
        "evaluation_policy_pscore_cascade": np.cumprod(evaluated, axis=1).ravel(),
        "evaluation_policy_pscore": np.repeat(evaluated.prod(axis=1), k),
        "evaluation_policy_pscore_item_position": rng.uniform(0.0, 0.5, n * k),
    }
    return feedback, evaluation


def weighted(feedback: dict[str, Any], evaluation: dict[str, Any], kind: str) -> float:
    """The mean over slates of rewards by the ratio of one kind of pscores, as obp has it."""
    weight = evaluation[f"evaluation_policy_{kind}"] / feedback[kind]
    return float((weight * feedback["reward"]).sum() / feedback["n_rounds"])


@pytest.mark.parametrize("repeating", [False, True])
def test_slates_of_obp(repeating: bool) -> None:
    feedback, evaluation = slates(repeating)
    names = ["ips", "rips", "iips"]
    found = ope.evaluate_table(from_obp(feedback, {"new": evaluation}), estimators=names)
    assert found.log["set_aside"] == {}
    assert found.places == 3
    estimates = found.policies[0].estimates
    for name, kind in (
        ("ips", "pscore"),
        ("rips", "pscore_cascade"),
        ("iips", "pscore_item_position"),
    ):
        wanted = weighted(feedback, evaluation, kind)
        assert estimates[name].value == pytest.approx(wanted, rel=1e-12), name
    # Rows in any order, and matrices, are the same.
    order = np.random.default_rng(2).permutation(len(feedback["action"]))
    mixed = {
        key: values[order]
        for key, values in feedback.items()
        if isinstance(values, np.ndarray) and len(values) == len(order)
    }
    moved = {key.removeprefix("evaluation_policy_"): v[order] for key, v in evaluation.items()}
    again = ope.evaluate_table(
        from_obp(mixed | {"n_unique_action": 6}, {"new": moved}), estimators=names
    )
    assert again.policies[0].estimates["rips"].value == pytest.approx(
        estimates["rips"].value, rel=1e-12
    )
    matrices = {
        key: values.reshape(-1, 3)
        for key, values in feedback.items()
        if key not in ("slate_id", "position", "context") and isinstance(values, np.ndarray)
    }
    again = ope.evaluate_table(
        from_obp(matrices | {"n_unique_action": 6}, {"new": evaluation}), estimators=names
    )
    assert again.policies[0].estimates["rips"] == estimates["rips"]


@pytest.mark.parametrize("behaviour", OBP)
def test_slates_that_obp_made_give_obps_figures(behaviour: str) -> None:
    with np.load(FILE) as file:
        arrays = dict(file)
    prefix = "evaluation_policy_"
    feedback = {"reward": arrays[f"reward_{behaviour}"]}
    feedback |= {name: arrays[name] for name in arrays if name.startswith(("action", "pscore"))}
    evaluation = {name: arrays[name] for name in arrays if name.startswith(prefix)}
    log = from_obp(feedback, {"new": evaluation})
    found = ope.evaluate_table(log, estimators=OBPS)
    assert found.log["set_aside"] == {}
    for name, wanted in zip(OBPS, OBP[behaviour], strict=True):
        assert found.policies[0].estimates[name].value == pytest.approx(wanted, rel=1e-9), name


def test_slates_of_which_the_whole_is_known_alone() -> None:
    feedback, evaluation = slates()
    del feedback["pscore_cascade"]
    found = ope.evaluate_table(
        from_obp(feedback, {"new": evaluation, "uniform": fr.Uniform()}),
        estimators=["ips", "rips"],
    )
    new, uniform = found.policies
    wanted = weighted(feedback, evaluation, "pscore")
    assert new.estimates["ips"].value == pytest.approx(wanted, rel=1e-12)
    assert new.estimates["rips"].value == pytest.approx(wanted, rel=1e-12)
    logged = found.logged.value
    assert uniform.estimates["ips"].value == pytest.approx(logged, rel=1e-12)


def test_what_obp_lacks_is_said_at_once() -> None:
    with pytest.raises(ColumnsError) as caught:
        from_obp({"slate_id": [0], "context": [[1.0]]})
    assert [name for name, _ in caught.value.problems] == [
        *("feedback['action']", "feedback['reward']", "feedback['pscore_cascade']"),
        "feedback['position']",
    ]
    assert str(caught.value).endswith("the table's columns are slate_id, context")
    feedback, evaluation = slates()
    marginals = {"pscore_item_position": evaluation["evaluation_policy_pscore_item_position"]}
    with pytest.raises(ColumnsError, match=r"evaluation\['b'\]: has no evaluation_policy_pscore_"):
        from_obp(feedback, {"a": evaluation, "b": marginals})
    one = {"pscore": evaluation["evaluation_policy_pscore"]}
    other = {"pscore_cascade": evaluation["evaluation_policy_pscore_cascade"]}
    with pytest.raises(ColumnsError, match="no kind of pscore in common"):
        from_obp(feedback, {"a": one, "b": other})


@pytest.mark.parametrize(
    ("changes", "law", "why"),
    [
        ({"action": [0.5, 1]}, None, r"feedback\['action'\]: row 0: expected an integer from 0"),
        ({"reward": [1, 0, 0]}, None, r"feedback\['reward'\]: expected 2 numbers.*got 3"),
        ({"position": [0]}, None, r"feedback\['position'\]: expected 2 integers, got 1"),
        ({}, [[0.5, 0.5]], r"evaluation\['new'\]: expected the probabilities of all actions"),
        ({}, [[1.0], [1.0]], r"evaluation\['new'\]: expected the probabilities of all actions"),
        ({"position": [0, 1]}, [[0.5, 0.5]] * 2, r"evaluation\['new'\]: expected.*third axis"),
        ({}, [[0.5, 0.5], [0.5, 0.4]], r"evaluation\['new'\]: row 1: .* sum to 0.9"),
        ({}, {"pscore": [0.5, 0.5]}, r"evaluation\['new'\]"),
    ],
)
def test_arrays_of_obp_that_do_not_fit(changes: dict[str, Any], law: Any, why: str) -> None:
    feedback = {"action": [0, 1], "reward": [1, 0], "pscore": [0.5, 0.5], **changes}
    with pytest.raises(ValueError, match=why):
        from_obp(feedback, {} if law is None else {"new": law})


@pytest.mark.parametrize(
    ("changes", "law", "why"),
    [
        ({"n_actions": 2}, None, r"\['action'\]: row 0: 2, where feedback\['n_actions'\] says"),
        ({"n_actions": 4}, [[0.1, 0.1, 0.8]] * 2, r"evaluation\['new'\]: .* 4 actions; got 3"),
        ({"action": [[1], [1, 2]]}, None, r"feedback\['action'\]: row 1: expected 1 numbers"),
    ],
)  # fmt: skip
def test_what_obp_says_twice_agrees(changes: dict[str, Any], law: Any, why: str) -> None:
    feedback = {"action": [2, 1], "reward": [1, 0], "pscore": [0.5, 0.5], **changes}
    with pytest.raises(ValueError, match=why):
        from_obp(feedback, {} if law is None else {"new": law})


def test_slates_whose_pscores_contradict_each_other() -> None:
    feedback, evaluation = slates()
    feedback["pscore"][3:6] *= 0.5
    with pytest.raises(ValueError, match=r"feedback: 1 of 2,000 slates, 1 for one, have a pscore"):
        from_obp(feedback, {"new": evaluation})
    feedback, evaluation = slates()
    evaluation["evaluation_policy_pscore"] = evaluation["evaluation_policy_pscore"] * 0.5
    with pytest.raises(ValueError, match=r"evaluation\['new'\]: 2,000 of 2,000 slates, 0 for one"):
        from_obp(feedback, {"new": evaluation})
    with pytest.raises(
        ValueError, match=r"feedback\['action'\]: row .*feedback\['n_unique_action'\]"
    ):
        from_obp(feedback | {"n_unique_action": 5})


def test_mappings_are_wanted() -> None:
    number: Any = 5
    with pytest.raises(ValueError, match="feedback: expected a mapping, got 5"):
        from_obp(number)
    feedback, evaluation = slates()
    with pytest.raises(ValueError, match=r"evaluation\['new'\]: of slates, expected a mapping of"):
        from_obp(feedback, {"new": evaluation["evaluation_policy_pscore"]})


def test_rows_of_obp_that_are_wrong_are_named() -> None:
    feedback, _ = actions()
    feedback["pscore"][7] = 0.0
    log = from_obp(feedback)
    assert sum(table.num_rows for table in log) == feedback["n_rounds"] - 1
    assert log.read_report.places == {"propensity not in (0, 1]": [("table", 7, "pscore: 0.0")]}


# ---- Vowpal Wabbit ------------------------------------------------------------------------------


def cb(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A line of a contextual bandit."""
    return {
        "_label_cost": -1.5,
        "_label_probability": 0.8,
        "_label_Action": 2,
        "_labelIndex": 1,
        "o": [{"v": 1.5, "EventId": f"e{number}"}],
        "Timestamp": "2021-02-04T16:31:29.2460000Z",
        "Version": "1",
        "EventId": f"e{number}",
        "a": [2, 1, 3],
        "c": {"GUser": {"id": "a"}, "_multi": [{}, {}, {}]},
        "p": [0.8, 0.15, 0.05],
        "VWState": {"m": "N/A"},
        **changes,
    }


def ccb(**changes: Any) -> dict[str, Any]:
    """A line of a conditional contextual bandit, whose id is the first slot's."""
    return {
        "Timestamp": "2019-09-10T14:43:37.2010000Z",
        "Version": "1",
        "c": {"_multi": [{}] * 4, "_slots": [{"_id": "s1"}, {"_id": "s2"}]},
        "_outcomes": [
            {
                "_label_cost": -2.0,
                "_id": "s1",
                "_a": [1, 3, 0, 2],
                "_p": [0.7, 0.1, 0.1, 0.1],
                "_o": [],
            },
            {"_label_cost": 0.0, "_id": "s2", "_a": [0, 3, 2], "_p": [0.8, 0.1, 0.1], "_o": []},
        ],
        "VWState": {"m": "N/A"},
        **changes,
    }


ONE_EACH = list(enumerate(ccb()["_outcomes"]))


def written(folder: Path, *lines: Any) -> Path:
    file = folder / "log.json"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts) + "\n")
    return file


def test_lines_of_both_kinds(tmp_path: Path) -> None:
    file = written(tmp_path, cb(), "", ccb(), cb(1, pdrop=0.2, _label_probability=0.64))
    log = from_dsjson(file)
    (batch,) = log.reader()
    assert batch.values("request_id") == ["e0", "s1", "e1"]
    assert [time.isoformat() for time in batch.values("ts")] == [
        "2021-02-04T16:31:29.246000+00:00",
        "2019-09-10T14:43:37.201000+00:00",
        "2021-02-04T16:31:29.246000+00:00",
    ]
    assert batch.lengths.tolist() == [1, 2, 1]
    assert batch.item_ids.tolist() == [[2, -1], [1, 0], [2, -1]]
    logged = [[0.8, 1.0], [0.7, 0.8], [0.8, 1.0]]
    np.testing.assert_allclose(np.exp(batch.log_propensities), logged, rtol=1e-15)
    assert batch.rewards[:, 0].tolist() == [1.5, 2.0, 1.5]
    assert batch.rewards[1, 1] == 0.0
    assert math.copysign(1.0, batch.rewards[1, 1]) == 1.0
    uniform = [[1 / 3, 1.0], [1 / 4, 1 / 3], [1 / 3, 1.0]]
    np.testing.assert_allclose(np.exp(batch.columns["uniform"]), uniform, rtol=1e-15)
    # Of those that are left, 0 is the first of the second slot, and was shown there.
    assert np.exp(batch.columns["first"]).tolist() == [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    assert batch.n_eligible.tolist() == [3, 4, 3]
    assert batch.row_weights is not None
    assert batch.row_weights.tolist() == [1.0, 1.0, 1.25]
    assert log.read_report.set_aside == {}


def test_what_was_not_learnt_was_not_observed(tmp_path: Path) -> None:
    lines = [cb(0, _skipLearn=True), cb(1, _label_cost=None), cb(2, _skipLearn=False)]
    (batch,) = from_dsjson(written(tmp_path, *lines)).reader()
    assert np.isnan(batch.rewards[:, 0]).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "neither cb nor ccb"),
        ({"RewardValue": 1.0, "EventId": "e"}, "neither cb nor ccb"),
        (cb(p=[0.8, 0.2]), "list lengths differ"),
        (cb(a=[2, 2, 1]), "actions"),
        (cb(a=[2, "1", 3]), "actions"),
        (cb(a=[]), "actions"),
        (cb(_label_Action=4), "label contradicts actions"),
        (cb(_labelIndex=0), "label contradicts actions"),
        (cb(_label_probability=0.7), "label contradicts propensities"),
        (cb(_label_probability=None, p=[0.0, 0.5, 0.5]), "propensity not in (0, 1]"),
        (cb(p=[1.5, 0.15, 0.05]), "propensity not in (0, 1]"),
        (cb(p=["0.8", 0.15, 0.05]), "not a number"),
        (json.dumps(cb()).replace("-1.5", "NaN"), "reward not finite"),
        (cb(_label_cost="x"), "not a number"),
        (cb(pdrop=1.0), "pdrop not in [0, 1)"),
        (cb(pdrop=-0.1), "pdrop not in [0, 1)"),
        (cb(EventId=None), "no request id"),
        (cb(EventId=True), "no request id"),
        (cb(EventId=1.5), "no request id"),
        (cb(p=[0.8, 0.15, 0.15]), "propensities do not sum to 1"),
        (cb(p=[0.8, 0.05, -0.05]), "propensities do not sum to 1"),
        (cb(p=[0.8, "0.15", 0.05]), "not a number"),
        (cb(Timestamp="yesterday"), "no time"),
        (cb(Timestamp=None), "no time"),
        (cb(EventId="\ud800"), "no request id"),
        (cb(_label_Action=True, _labelIndex=None, a=[1, 2, 3]), "label contradicts actions"),
        (ccb(_outcomes=[]), "no slot"),
        (
            ccb(_outcomes=[each | {"_a": [j], "_p": [1.0]} for j, each in ONE_EACH]),
            "more items than eligible",
        ),
        (ccb(_outcomes=[ONE_EACH[0][1], ONE_EACH[1][1] | {"_a": [0, 1, 2]}]), "actions"),
        (ccb(_outcomes=5), "neither cb nor ccb"),
        (ccb(_outcomes=[ccb()["_outcomes"][0]] * 2), "repeated item"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_broken_lines_are_named(line: Any, reason: str, tmp_path: Path) -> None:
    file = written(tmp_path, cb(0), line, cb(1))
    log = from_dsjson(file)
    reader = log.reader()
    (batch,) = reader
    assert len(batch) == 2
    assert reader.report.set_aside == {reason: 1}
    ((path, number, _),) = reader.report.places[reason]
    assert (path, number) == (str(file), 1)
    assert reader.report.rows_read == 3


def test_ids_that_are_integers_are_taken_as_text(tmp_path: Path) -> None:
    slots = ccb()["_outcomes"]
    slots[0]["_id"] = 12
    file = written(tmp_path, cb(EventId=0), cb(EventId=-(10**30)), ccb(_outcomes=slots))
    (batch,) = from_dsjson(file).reader()
    assert batch.values("request_id") == ["0", str(-(10**30)), "12"]


@pytest.mark.parametrize("name", ["log.json.gz", "log.jsonl.gz", "log.json"])
def test_dsjson_packed_by_gzip(name: str, tmp_path: Path) -> None:
    text = written(tmp_path, cb(0), cb(1)).read_bytes()
    (tmp_path / "log.json").unlink()
    (tmp_path / name).write_bytes(gzip.compress(text))
    (batch,) = from_dsjson(tmp_path).reader()
    assert batch.values("request_id") == ["e0", "e1"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (json.dumps(cb()).encode("utf-16"), "expected lines of JSON, in UTF-8; text in UTF-16"),
        (b"PAR1\x15\x04\x15\x00", "expected lines of JSON, in UTF-8; a Parquet file"),
        (
            gzip.compress(json.dumps(cb()).encode() + b"\n", mtime=0)[:-8],
            "Compressed file ended before",
        ),
    ],
)
def test_files_that_are_no_dsjson_are_set_aside(content: bytes, why: str, tmp_path: Path) -> None:
    """Beside others, and alone."""
    sound, other = written(tmp_path, cb(1)), tmp_path / "other.json"
    other.write_bytes(content)
    found = ope.evaluate_table(from_dsjson([sound, other]))
    assert found.rows == 1
    ((file, said),) = found.log["unreadable_files"].items()
    assert (file, said[: len(why)]) == (str(other), why)
    assert said.isprintable()
    assert "unreadable_files" in found.policies[0].reasons
    with pytest.raises(ValueError, match=r"no file of the log can be read: .*other.json"):
        ope.evaluate_table(from_dsjson(other))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(
    changes=st.dictionaries(st.sampled_from([*cb(), *ccb(), "pdrop", "_skipLearn"]), VALUES),
    of_slot=st.dictionaries(st.sampled_from([*ccb()["_outcomes"][0]]), VALUES),
    conditional=st.booleans(),
)
def test_whatever_stands_in_a_line_is_read_or_named(
    changes: dict[str, Any], of_slot: dict[str, Any], conditional: bool
) -> None:
    line = cb() | changes
    if conditional:
        line = ccb()
        line["_outcomes"][1] |= of_slot
        line |= changes
    with tempfile.TemporaryDirectory() as folder:
        log = from_dsjson(written(Path(folder), line))
        reader = log.reader()
        rows = sum(map(len, reader))
    assert rows + reader.report.rows_set_aside == 1
    assert reader.report.set_aside == log.read_report.set_aside


@given(content=st.binary(max_size=200), packed=st.booleans())
def test_whatever_is_in_a_file_is_named(content: bytes, packed: bool) -> None:
    sound = json.dumps(cb()).encode() + b"\n"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "log.json")
        file.write_bytes(gzip.compress(sound + content) if packed else sound + content)
        refusal = None
        reader = from_dsjson(file).reader()
        try:
            rows = sum(map(len, reader))
        except ValueError as error:
            refusal = error
    if refusal is not None:  # it is no text
        assert str(refusal).startswith("no file of the log can be read: ")
        assert str(refusal).isprintable()
        return
    assert rows == 1
    report = reader.report
    lines = sum(bool(line.strip()) for line in content.split(b"\n"))
    assert report.rows_set_aside == lines
    assert all(detail.isprintable() for each in report.places.values() for _, _, detail in each)


def test_vws_baselines(tmp_path: Path) -> None:
    """Figures of `uniform` and `first` are those of their definitions."""
    rng = np.random.default_rng(4)
    lines, uniform, first = [], [], []
    n = 12_000  # more than one table
    for number in range(n):
        count = int(rng.integers(2, 5))
        law = rng.dirichlet(np.ones(count))
        action = int(rng.choice(count, p=law)) + 1
        order = [action, *(a for a in range(1, count + 1) if a != action)]
        reward = int(rng.random() < 0.1 * action)
        p = [float(law[a - 1]) for a in order]
        lines.append(
            cb(
                number,
                _label_cost=-reward,
                _label_Action=action,
                _labelIndex=action - 1,
                _label_probability=p[0],
                a=order,
                p=p,
            )
        )
        uniform.append(reward / count / p[0])
        first.append(reward * (action == 1) / p[0])
    found = ope.evaluate_table(from_dsjson(written(tmp_path, *lines)))
    assert found.rows == n
    values = {each.label: each.estimates["ips"].value for each in found.policies}
    assert values["uniform"] == pytest.approx(np.mean(uniform), rel=1e-12)
    assert values["first"] == pytest.approx(np.mean(first), rel=1e-12)
    assert found.span is not None


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no dsjson files"):
        from_dsjson(tmp_path)
    with pytest.raises(ValueError, match="paths: none given"):
        from_dsjson([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_rounds": 3}, r"feedback\['n_rounds'\]: 3, and there are 2 rounds"),
        ({"n_actions": "two"}, r"feedback\['n_actions'\]: expected an integer from 1, got 'two'"),
        ({"n_actions": 0}, r"feedback\['n_actions'\]: expected an integer from 1, got 0"),
        ({"n_actions": 10**30}, r"feedback\['n_actions'\]: expected an integer from 1, got 1000"),
    ],
)
def test_counts_that_contradict_the_log_are_refused(changes: dict[str, Any], message: str) -> None:
    feedback = {"action": [1, 0], "reward": [1, 0], "pscore": [0.5, 0.5], "n_actions": 2}
    with pytest.raises(ValueError, match=message):
        from_obp(feedback | changes, {"new": [[0.1, 0.9], [0.2, 0.8]]})
    assert list(from_obp(feedback | {"n_rounds": 2}, {}))
