"""Logs of Vowpal Wabbit in dsjson format, one decision per line, as tables in the log's schema."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from fastrank.eventlog.ownlog import OwnLog
from fastrank.eventlog.report import ReadReport
from fastrank.eventlog.schema import BEYOND, LARGEST
from fastrank.eventlog.upgrade import completed
from fastrank.files import Paths, files_at, not_text, opened
from fastrank.inputs import shown

__all__ = ["Dsjson", "from_dsjson"]

_TABLE_ROWS = 10_000
_UNPAIRED = re.compile("[\ud800-\udfff]")  # halves of surrogate pairs, which no encoding has
# A probability may be written with few digits; float32 has seven.
_AGREE = 1e-3
_HEAD = 4096  # bytes that identify the format of a file


def from_dsjson(paths: Paths) -> Dsjson:
    """Read decisions that Vowpal Wabbit logged as dsjson; see `Dsjson`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> file = Path(tempfile.mkdtemp(), "decisions.json")
    >>> _ = file.write_text("not JSON")
    >>> log = from_dsjson(file)
    >>> list(log), log.read_report.rows_set_aside, log.policies
    ([], 1, {'uniform': 'uniform', 'first': 'first'})
    """
    return Dsjson(paths)


class Dsjson(OwnLog):
    """Vowpal Wabbit's dsjson as tables in the log's schema; can be iterated over several times.

    A line of a contextual bandit (cb) is a ranking of one place; a line of a conditional one (ccb)
    is a ranking with one place per slot. Items are the numbers of the actions in the line, from 1
    for cb, from 0 for ccb. The logged propensity is that of the chosen action, from `p` (`_p`); in
    ccb it is conditional on the slots before. The reward is -cost.

    Parameters
    ----------
    paths : path or iterable of paths
        Files, directories (every .jsonl, .ndjson and .json in them, recursively) or globs. Files
        may be compressed by gzip.

    Attributes
    ----------
    policies : dict of str to str
        ``uniform``, in which all remaining actions are equally likely, and ``first``, which takes
        the first of the remaining actions in the line: Vowpal Wabbit's baseline. Neither needs a
        model.
    read_report : ReadReport
        Lines set aside by reason, from 0; complete after the last table.

    Notes
    -----
    A line stands for 1 / (1 - pdrop) lines, which is its `row_weight`. With `_skipLearn` the
    decision was not shown, and its reward counts as not observed; so does a missing cost.
    `_label_probability` may be the probability, or the probability times 1 - pdrop, as some tools
    write it: it is only compared with `p`, which counts.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> line = {"_label_cost": -1, "_label_probability": 0.8, "_label_Action": 2, "_labelIndex": 1,
    ...         "Timestamp": "2026-01-01T00:00:00Z", "EventId": "e1", "a": [2, 1], "p": [0.8, 0.2]}
    >>> file = Path(tempfile.mkdtemp(), "decisions.json")
    >>> _ = file.write_text(json.dumps(line))
    >>> (table,) = from_dsjson(file)
    >>> table["item_ids"].to_pylist(), table["rewards"].to_pylist(), table["uniform"].to_pylist()
    ([[2]], [[1.0]], [[-0.6931471805599453]])
    """

    def __init__(self, paths: Paths) -> None:
        formats = ("jsonl", "json", "jsonl.gz", "json.gz")
        self.files = files_at(paths, formats, "dsjson files (.jsonl, .json, .gz of them)")
        if not self.files:
            raise ValueError("paths: none given; name a file, a directory or a glob")
        self.policies = {"uniform": "uniform", "first": "first"}
        self.columns = list(self.policies)
        self.arrays = {}
        self.has_times = True
        self.read_report = ReadReport()

    def __iter__(self) -> Iterator[pa.Table]:
        self.read_report = report = ReadReport()
        rows: list[dict[str, Any]] = []
        for path in self.files:
            try:
                with opened(path) as head:
                    other = not_text(head.read(_HEAD))
                if other is not None:
                    report.files_set_aside[str(path)] = f"expected lines of JSON, in UTF-8; {other}"
                    continue
                with opened(path) as lines:
                    for number, line in enumerate(lines):
                        if not line.strip():
                            continue
                        try:
                            rows.append(_row(_event(line)))
                        except _FlawError as flaw:
                            report.aside(flaw.reason)
                            report.name(flaw.reason, str(path), number, flaw.detail)
                        if len(rows) == _TABLE_ROWS:
                            yield _table(rows)
                            rows = []
            except (OSError, EOFError, zlib.error) as error:
                report.files_set_aside[str(path)] = str(error)
        if rows:
            yield _table(rows)


class _FlawError(Exception):
    """Why a line is set aside."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _FlawError("not JSON", str(error)) from None
    if not isinstance(event, dict):
        raise _FlawError("neither cb nor ccb", shown(event))
    return event


def _row(event: dict[str, Any]) -> dict[str, Any]:
    """One decision, as columns."""
    dropped = 0.0 if event.get("pdrop") is None else _number("pdrop", event["pdrop"])
    if not 0.0 <= dropped < 1.0:
        raise _FlawError("pdrop not in [0, 1)", shown(dropped))
    if "_outcomes" in event:
        slots, request = _slots(event, dropped)
    elif "a" in event and "p" in event:
        slots, request = [_slot("", event, "a", "p", dropped)], event.get("EventId")
    else:
        raise _FlawError("neither cb nor ccb", ", ".join(list(event)[:5]))
    items = [slot["item"] for slot in slots]
    if len(set(items)) < len(items):
        raise _FlawError("repeated item", shown(items))
    above = set[int]()
    for j, slot in enumerate(slots):
        if not above.isdisjoint(slot["actions"]):
            what = f"_outcomes[{j}]: _a: {shown(slot['actions'])}, of which some stand above"
            raise _FlawError("actions", what)
        above.add(slot["item"])
    if len(items) > slots[0]["left"]:
        raise _FlawError("more items than eligible", f"{len(items)} of {slots[0]['left']}")
    if type(request) is int:
        request = str(request)
    if not isinstance(request, str) or not request or _UNPAIRED.search(request):
        raise _FlawError("no request id", shown(request))
    logs = [math.log(slot["p"]) for slot in slots]
    learnt = event.get("_skipLearn") is not True
    return {
        "request_id": request,
        "ts": _time(event.get("Timestamp")),
        "row_weight": 1.0 / (1.0 - dropped) if dropped else None,
        "n_eligible": slots[0]["left"],
        "k": len(slots),
        "item_ids": items,
        "log_propensities": logs,
        "log_propensity": math.fsum(logs),
        "rewards": [slot["reward"] if learnt else None for slot in slots],
        "uniform": [-math.log(slot["left"]) for slot in slots],
        "first": [0.0 if slot["is_first"] else -math.inf for slot in slots],
    }


def _slots(event: dict[str, Any], dropped: float) -> tuple[list[dict[str, Any]], Any]:
    outcomes = event["_outcomes"]
    if not isinstance(outcomes, list) or not all(isinstance(each, dict) for each in outcomes):
        raise _FlawError("neither cb nor ccb", f"_outcomes: {shown(outcomes)}")
    if not outcomes:
        raise _FlawError("no slot")
    slots = [
        _slot(f"_outcomes[{j}]: ", each, "_a", "_p", dropped) for j, each in enumerate(outcomes)
    ]
    own = event.get("EventId")
    return slots, outcomes[0].get("_id") if own is None or own == "" else own


def _slot(
    where: str, said: dict[str, Any], actions_name: str, law_name: str, dropped: float
) -> dict[str, Any]:
    """What was chosen from which actions, with which probability, and what it earned."""
    actions, law = said.get(actions_name), said.get(law_name)
    if (
        not isinstance(actions, list)
        or not actions
        or not all(type(each) is int and abs(each) < 2**63 for each in actions)
        or len(set(actions)) < len(actions)
    ):
        raise _FlawError("actions", f"{where}{actions_name}: {shown(actions)}")
    if not isinstance(law, list) or len(law) != len(actions):
        lengths = f"{len(actions)} actions, {law_name}: {shown(law)}"
        raise _FlawError("list lengths differ", f"{where}{lengths}")
    item: Any = said.get("_label_Action", actions[0])
    if (
        type(item) is not int
        or item not in actions
        or said.get("_labelIndex", item - 1) != item - 1
    ):
        label = f"_label_Action {shown(item)}, _labelIndex {shown(said.get('_labelIndex'))}"
        raise _FlawError("label contradicts actions", f"{where}{label}, actions {shown(actions)}")
    p = _number(f"{where}{law_name}", law[actions.index(item)])
    if not 0.0 < p <= 1.0 + 1e-6:
        raise _FlawError("propensity not in (0, 1]", f"{where}{p!r}")
    total = math.fsum(_number(f"{where}{law_name}", each) for each in law)
    if not abs(total - 1.0) <= _AGREE:
        raise _FlawError("propensities do not sum to 1", f"{where}{law_name}: {total:.6g}")
    stated = said.get("_label_probability")
    if stated is not None:
        stated = _number(f"{where}_label_probability", stated)
        if all(abs(stated - each) > _AGREE * each for each in (p, p * (1.0 - dropped))):
            both = f"_label_probability {stated!r}, {law_name} {p!r}"
            raise _FlawError("label contradicts propensities", f"{where}{both}")
    cost = said.get("_label_cost")
    reward = None if cost is None else 0.0 - _number(f"{where}_label_cost", cost)
    if reward is not None and not math.isfinite(reward):
        raise _FlawError("reward not finite", f"{where}_label_cost {cost!r}")
    if reward is not None and abs(reward) > LARGEST:
        raise _FlawError(BEYOND, f"{where}_label_cost {cost!r}")
    return {
        "item": item,
        "p": min(p, 1.0),
        "reward": reward,
        "actions": actions,
        "left": len(actions),
        "is_first": item == min(actions),
    }


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _FlawError("not a number", f"{name}: {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise _FlawError("not a number", f"{name}: {shown(value)}") from None


def _time(text: Any) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise _FlawError("no time", shown(text)) from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    n = len(rows)
    lists = pa.list_(pa.float64())
    types = {
        **dict.fromkeys(("row_weight", "log_propensity"), pa.float64()),
        **dict.fromkeys(("log_propensities", "rewards", "uniform", "first"), lists),
        **dict.fromkeys(("n_eligible", "k"), pa.int64()),
        "request_id": pa.string(),
        "ts": pa.timestamp("us", tz="UTC"),
        "item_ids": pa.list_(pa.int64()),
    }
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}
    return completed(
        pa.table(
            {
                **columns,
                "policy_name": pa.repeat("vowpal_wabbit", n),
                "is_fallback": pa.array(np.zeros(n, np.bool_)),
                "propensity_kind": pa.repeat("exact", n),
                "log_norm_error": pa.repeat(0.0, n),
                "reward_kind": pa.repeat("complete", n),
            }
        )
    )
