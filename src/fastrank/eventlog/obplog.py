"""Logs of the Open Bandit Pipeline (obp), dictionaries of arrays, as tables in the log's schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrank.arraytypes import AnyArray, FloatArray, IntArray
from fastrank.eventlog.owncolumns import Columns, ColumnsError
from fastrank.eventlog.ownlog import TableLog
from fastrank.inputs import as_real, shown
from fastrank.policies import Policy

__all__ = ["from_obp"]

_OF_EVALUATION = "evaluation_policy_"
_MARGINALS = "pscore_item_position"
# Two statements of one probability may differ by this relative error.
_AGREE = 1e-4


def from_obp(feedback: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None) -> TableLog:
    """Read a log of the Open Bandit Pipeline as tables in this log's schema.

    Parameters
    ----------
    feedback : mapping of str to array_like
        The bandit feedback of obp. For single actions: `action` (n,), `reward`, `pscore`, and
        `position` if the lists have several places: each place is then a separate row, with the
        position as context. `pscore` must agree with `pi_b`, the law over all actions, if it
        exists. For slates, with one row per item: `slate_id`, `position` from 0, `action`,
        `reward`, and `pscore_cascade`, which covers all items down to the place, or `pscore`, which
        covers the whole slate; and `pscore_item_position` for iips. Arrays of shape (slates,
        places) need neither `slate_id` nor `position`. Other entries are ignored.
    evaluation : mapping of str to array_like, mapping or Policy, optional
        Evaluation policies, by label. For single actions an `action_dist`: (n, actions) or (n,
        actions, places). For slates a mapping of obp's ``evaluation_policy_pscore_cascade`` and so
        on, of the same kinds as in the log, with or without that prefix. Or ``fr.Uniform()``.

    Returns
    -------
    TableLog
        `evaluate_table` takes it directly. Its `arrays` are the marginals for iips, if log and
        policy have them.

    Raises
    ------
    ColumnsError
        A ValueError that names everything that is missing at once.
    ValueError
        If arrays do not fit each other.

    Notes
    -----
    If a slate shows an action twice (obp's factorizable policies), each place has its own items:
    ``position * n_unique_action + action``. With only `pscore`, rips and snrips equal ips and
    snips: the probability of a whole slate says nothing about single places.

    Examples
    --------
    >>> log = from_obp(
    ...     {"action": [1, 0], "reward": [1, 0], "pscore": [0.5, 0.5], "n_actions": 2},
    ...     {"new": [[0.1, 0.9], [0.2, 0.8]]})
    >>> [table["new"].to_pylist() for table in log]
    [[[-0.10536051565782628], [-1.6094379124341003]]]
    """
    evaluation = {} if evaluation is None else evaluation
    for name, given in (("feedback", feedback), ("evaluation", evaluation)):
        if not isinstance(given, Mapping):
            raise ValueError(f"{name}: expected a mapping, got {shown(given)}")
    missing = [name for name in ("action", "reward") if feedback.get(name) is None]
    if "action" not in missing:
        feedback = {**feedback, "action": as_real("feedback['action']", feedback["action"])}
    is_matrix = np.ndim(feedback.get("action", 0)) == 2
    of_slates = is_matrix or feedback.get("slate_id") is not None
    kinds = ("pscore_cascade", "pscore") if of_slates else ("pscore",)
    if all(feedback.get(name) is None for name in kinds):
        missing.append(kinds[0])
    if of_slates and not is_matrix and feedback.get("position") is None:
        missing.append("position")
    if missing:
        raise ColumnsError([(f"feedback[{n!r}]", "is missing") for n in missing], [*feedback])
    return _slates(feedback, evaluation) if of_slates else _actions(feedback, evaluation)


def _actions(feedback: Mapping[str, Any], evaluation: Mapping[str, Any]) -> TableLog:
    action = _integers("action", feedback["action"])
    n = len(action)
    columns: dict[str, AnyArray] = {
        "action": action,
        "reward": _flat("feedback['reward']", feedback["reward"], n),
        "pscore": _flat("feedback['pscore']", feedback["pscore"], n),
    }
    _check_rounds(feedback, n)
    place = np.zeros(n, np.int64)
    if feedback.get("position") is not None:
        place = columns["position"] = _integers("position", feedback["position"], n)
    n_actions = _count(feedback, "n_actions", action)
    if feedback.get("pi_b") is not None:
        pscore = columns["pscore"]
        law = _chosen("feedback['pi_b']", feedback["pi_b"], action, place, n_actions)
        off = np.flatnonzero(np.abs(pscore - law) > _AGREE * law)
        if len(off):
            raise ValueError(
                f"feedback['pscore']: row {off[0]}: {pscore[off[0]]:g}, where feedback['pi_b'] has"
                f" {law[off[0]]:g} for the action"
            )
    policies: dict[str, str | Policy] = {}
    for label, given in evaluation.items():
        if isinstance(given, Policy):
            policies[label] = given
            continue
        name = _free(label, columns)
        columns[name] = _chosen(f"evaluation[{label!r}]", given, action, place, n_actions)
        policies[label] = name
    return TableLog(
        columns,
        Columns(
            item="action",
            propensity="pscore",
            reward="reward",
            n_eligible=n_actions,
            policies=policies,
            columns=["position"] if "position" in columns else [],
        ),
    )


def _chosen(
    what: str, given: Any, action: IntArray, place: IntArray, n_actions: int | None
) -> FloatArray:
    """A policy's probability of each row's action, from its law over all actions."""
    law = as_real(what, given)
    law = law[:, :, None] if law.ndim == 2 else law
    fits = law.ndim == 3 and len(law) == len(action)
    if not fits or action.max(initial=0) >= law.shape[1] or place.max(initial=0) >= law.shape[2]:
        raise ValueError(
            f"{what}: expected the probabilities of all actions,"
            f" ({len(action)}, over {action.max(initial=0)}) or with a third axis of over"
            f" {place.max(initial=0)} positions; got shape {np.shape(given)}"
        )
    if n_actions is not None and law.shape[1] != n_actions:
        raise ValueError(
            f"{what}: expected the probabilities of feedback['n_actions'],"
            f" {n_actions} actions; got {law.shape[1]}"
        )
    rows = np.arange(len(action))
    sums = law[rows, :, place].sum(axis=1)
    off = np.flatnonzero(~(np.abs(sums - 1.0) <= 1e-4))
    if len(off):
        raise ValueError(
            f"{what}: row {off[0]}: the probabilities of all actions sum to"
            f" {sums[off[0]]:g}, not to 1"
        )
    return np.asarray(law[rows, action, place], np.float64)


def _slates(feedback: Mapping[str, Any], evaluation: Mapping[str, Any]) -> TableLog:
    action = _integers("action", feedback["action"])
    m = len(action)
    if np.ndim(feedback["action"]) == 2:
        slates, places = np.shape(feedback["action"])
        slate, position = np.repeat(np.arange(slates), places), np.tile(np.arange(places), slates)
    else:
        slate = _integers("slate_id", feedback["slate_id"], m)
        position = _integers("position", feedback["position"], m)
    _check_rounds(feedback, len(np.unique(slate)))
    n_actions = _count(feedback, "n_unique_action", action)
    pairs = np.lexsort((action, slate))
    ordered_slate, ordered_action = slate[pairs], action[pairs]
    same = (ordered_slate[1:] == ordered_slate[:-1]) & (ordered_action[1:] == ordered_action[:-1])
    if same.any():
        action = position * (n_actions or int(action.max()) + 1) + action
        n_actions = None
    columns: dict[str, AnyArray] = {
        "slate_id": slate,
        "position": position,
        "action": action,
        "reward": _flat("feedback['reward']", feedback["reward"], m),
    }
    logged = {
        name: _flat(f"feedback[{name!r}]", feedback[name], m)
        for name in ("pscore_cascade", "pscore", _MARGINALS)
        if feedback.get(name) is not None
    }
    _check_whole("feedback", logged, slate, position)
    laws = {
        label: _of_evaluation(label, given, m)
        for label, given in evaluation.items()
        if not isinstance(given, Policy)
    }
    for label, law in laws.items():
        _check_whole(f"evaluation[{label!r}]", law, slate, position)
    kind = next(
        (
            name
            for name in ("pscore_cascade", "pscore")
            if name in logged and all(name in law for law in laws.values())
        ),
        None,
    )
    if kind is None:
        has = " or ".join(name for name in logged if name != _MARGINALS)
        raise ColumnsError(
            [
                (f"evaluation[{label!r}]", f"has no {_OF_EVALUATION}{has}, as the log has")
                for label, law in laws.items()
                if not (law.keys() & logged.keys() - {_MARGINALS})
            ]
            or [
                ("evaluation", f"the policies have no kind of pscore in common with the log: {has}")
            ]
        )
    columns["pscore"] = logged[kind]
    marginals = _MARGINALS in logged
    if marginals:
        columns[_MARGINALS] = logged[_MARGINALS]
    carried = [_MARGINALS] if marginals else []
    policies: dict[str, str | Policy] = {
        label: given for label, given in evaluation.items() if isinstance(given, Policy)
    }
    arrays = {}
    for label, law in laws.items():
        policies[label] = name = _free(label, columns)
        columns[name] = law[kind]
        if marginals and _MARGINALS in law:
            of_law = _free(f"{label} {_MARGINALS}", columns)
            columns[of_law] = law[_MARGINALS]
            carried.append(of_law)
            arrays[label] = {"marginals_logged": _MARGINALS, "marginals_evaluated": of_law}
    log = TableLog(
        columns,
        Columns(
            item="action",
            propensity="pscore",
            propensity_of="prefix" if kind == "pscore_cascade" else "ranking",
            reward="reward",
            request="slate_id",
            position="position",
            n_eligible=n_actions,
            policies={label: policies[label] for label in evaluation},
            columns=carried,
        ),
    )
    log.arrays = {
        label: {name: log.carried[column] for name, column in named.items()}
        for label, named in arrays.items()
    }
    return log


def _of_evaluation(label: str, given: Any, m: int) -> dict[str, FloatArray]:
    if not isinstance(given, Mapping):
        raise ValueError(
            f"evaluation[{label!r}]: of slates, expected a mapping of"
            f" {_OF_EVALUATION}pscore_cascade, {_OF_EVALUATION}pscore and"
            f" {_OF_EVALUATION}{_MARGINALS}, as far as they are there; got {shown(given)}"
        )
    found = {}
    for name in ("pscore_cascade", "pscore", _MARGINALS):
        for key in (name, _OF_EVALUATION + name):
            if given.get(key) is not None:
                found[name] = _flat(f"evaluation[{label!r}][{key!r}]", given[key], m)
    return found


def _free(name: str, columns: Mapping[str, Any]) -> str:
    while name in columns:
        name = f"{name} evaluated"
    return name


def _flat(name: str, values: Any, n: int) -> AnyArray:
    """Numbers (n,); an array of (slates, places) is flattened slate by slate."""
    array = np.asarray(values)
    if array.dtype.kind == "b":
        array = array.astype(np.float64)
    array = as_real(name, array).reshape(-1)
    if len(array) != n:
        raise ValueError(f"{name}: expected {n} numbers, as of actions, got {len(array)}")
    return array


def _integers(name: str, values: Any, n: int | None = None) -> IntArray:
    array = as_real(f"feedback[{name!r}]", values).reshape(-1)
    if n is not None and len(array) != n:
        raise ValueError(f"feedback[{name!r}]: expected {n} integers, got {len(array)}")
    wrong = np.flatnonzero(~((array >= 0) & (array % 1 == 0)))
    if len(wrong):
        raise ValueError(
            f"feedback[{name!r}]: row {wrong[0]}: expected an integer from 0, got {array[wrong[0]]}"
        )
    return array.astype(np.int64)


def _count(feedback: Mapping[str, Any], name: str, action: IntArray) -> int | None:
    """The number of actions, if the feedback states it."""
    value = feedback.get(name)
    if value is None:
        return None
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 1 <= value < 2**63:
        raise ValueError(f"feedback[{name!r}]: expected an integer from 1, got {shown(value)}")
    beyond = np.flatnonzero(action >= value)
    if len(beyond):
        raise ValueError(
            f"feedback['action']: row {beyond[0]}: {action[beyond[0]]}, where feedback[{name!r}]"
            f" says that there are {value}, from 0"
        )
    return int(value)


def _check_whole(
    of: str, law: Mapping[str, FloatArray], slate: IntArray, position: IntArray
) -> None:
    """Check that the product down to a slate's last place is the whole slate's probability."""
    if "pscore" not in law or "pscore_cascade" not in law or not len(slate):
        return
    order = np.lexsort((position, slate))
    last = order[np.append(np.flatnonzero(np.diff(slate[order])), len(order) - 1)]
    whole, product = law["pscore"][last], law["pscore_cascade"][last]
    off = np.flatnonzero(np.abs(whole - product) > _AGREE * np.abs(whole))
    if len(off):
        at = off[0]
        raise ValueError(
            f"{of}: {len(off):,} of {len(last):,} slates, {slate[last[at]]} for one, have a pscore,"
            f" {whole[at]:g}, that is not pscore_cascade in their last place, {product[at]:g}"
        )


def _check_rounds(feedback: Mapping[str, Any], rounds: int) -> None:
    """Refuse a number of rounds that differs from the rows: of another log, or truncated."""
    stated = feedback.get("n_rounds")
    if stated is not None and stated != rounds:
        raise ValueError(f"feedback['n_rounds']: {shown(stated)}, and there are {rounds:,} rounds")
