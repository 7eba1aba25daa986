"""One ranking on its way into the log: checks the arguments of `LogWriter.append`, makes Arrow."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import accumulate
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fastrank.catalog import RNG_VERSION
from fastrank.eventlog.columns import MAX_PARAMETERS
from fastrank.eventlog.schema import PROPENSITY_KINDS, SCHEMA_VERSION, IdKind, schema
from fastrank.expressions import as_params
from fastrank.ids import plain_id
from fastrank.inputs import as_column, as_float32, as_real, shown
from fastrank.policies import (
    Deterministic,
    EpsilonGreedy,
    PlackettLuce,
    Policy,
    Uniform,
    is_frozen,
)
from fastrank.ranking import Ranking, Score
from fastrank.rules import AppliedRules, Rules

__all__ = [
    "Row",
    "Time",
    "as_batch",
    "as_evaluated",
    "as_positive",
    "as_query",
    "as_retrieval",
    "as_rewards",
    "as_rules_columns",
    "as_score_columns",
    "as_text",
    "as_time",
    "as_user",
    "items_of",
    "law_of_row",
]

Time: TypeAlias = datetime | np.datetime64 | int

_EPOCH = np.datetime64(0, "us")
_NO_RULES = Rules()
_ROUNDING = 1e-9  # largest log-propensity above 0 that counts as rounding
# Comparing a dtype with a scalar type would create a dtype each time.
_INT64, _FLOAT32, _FLOAT64 = map(np.dtype, (np.int64, np.float32, np.float64))
# Policies whose parameters are finite numbers by construction.
_OWN = (PlackettLuce, EpsilonGreedy, Uniform, Deterministic)


class Row(NamedTuple):
    """One ranking between `append` and the flush; lists of numbers are stored as bytes."""

    request_id: str
    request_id_source: str | None
    inference_id: str | None
    traceparent: str | None
    ts: int
    run: str | None
    user_id: str | None
    experiment: str | None
    arm: str | None
    revision: str | None
    policy_name: str
    law: str
    law_params: list[tuple[str, float]]
    sampler: str | None
    user_temperature: float | None
    seed: int
    seed_source: str
    model_version: str | None
    catalog_version: str
    features_version: str | None
    query: bytes | None
    score: dict[str, str] | None
    exclude: list[Any] | None
    allow: list[Any] | None
    filter_id: dict[str, str] | None
    bias_id: str | None
    seen_id: str | None
    rules: dict[str, str] | None
    after: list[Any] | None
    n_eligible: int
    candidate_set_id: str | None
    n_candidates: int | None
    retrieval: dict[str, str] | None
    n_probes: int | None
    tail_log_weight: float | None
    is_fallback: bool
    made_by: str | None
    n_scored: int | None
    k: int
    length: int
    item_ids: Any  # bytes of int64, or a list of str
    is_candidate: list[bool] | None
    scores: bytes
    log_propensities: bytes
    log_propensity: float
    log_norm: float | None
    propensity_kind: str
    log_norm_error: float
    evaluation_log_propensities: list[tuple[str, list[float]]] | None
    displayed: int | None
    latency_us: float | None
    rewards: list[float | None] | None
    reward_kind: str | None
    reward_ts: int | None


# Rows to Arrow.


def as_batch(rows: list[tuple[int, Row]], kind: IdKind, writer_id: str) -> pa.RecordBatch:
    sequence, fields = zip(*rows, strict=True)
    columns = dict(zip(Row._fields, zip(*fields, strict=True), strict=True))
    n = len(rows)
    wanted = schema(kind)
    lengths = columns["length"]
    if kind == "int64":
        item_ids = _list_of_bytes(columns["item_ids"], lengths, np.int64)
    else:
        flat = [item for items in columns["item_ids"] for item in items]
        item_ids = pa.ListArray.from_arrays(_offsets(lengths), pa.array(flat, pa.string()))
    parameters = [entry for entries in columns["law_params"] for entry in entries]
    of_laws = wanted.field("law_params").type
    law_params = pa.ListArray.from_arrays(
        _offsets(map(len, columns["law_params"])),
        pa.StructArray.from_arrays(
            [
                pa.array([name for name, _ in parameters], pa.string()),
                pa.array([value for _, value in parameters], pa.float64()),
            ],
            fields=list(of_laws.value_type),
        ),
        type=of_laws,
    )
    queries = columns["query"]
    if any(query is not None for query in queries):
        sizes = [0 if query is None else len(query) // 4 for query in queries]
        query = _list_of_bytes([q or b"" for q in queries], sizes, np.float32)
        missing = pa.array([q is None for q in queries])
        query = pc.if_else(missing, pa.scalar(None, query.type), query)
    else:
        query = pa.nulls(n, pa.list_(pa.float32()))
    made: dict[str, Any] = {
        "schema_version": pa.array(np.full(n, SCHEMA_VERSION, np.int16)),
        "writer_id": pa.array([writer_id] * n, pa.string()),
        "writer_seq": pa.array(sequence, pa.int64()),
        "law_params": law_params,
        "item_kind": pa.array([kind] * n, pa.string()),
        "rng_version": pa.array(np.full(n, RNG_VERSION, np.int16)),
        "query": query,
        "item_ids": item_ids,
        "scores": _list_of_bytes(columns["scores"], lengths, np.float32),
        "log_propensities": _list_of_bytes(columns["log_propensities"], lengths, np.float64),
    }
    for name in ("ts", "reward_ts"):
        micros = pa.array(columns[name], pa.int64())
        made[name] = micros.cast(wanted.field(name).type)
    arrays = [
        made[field.name]
        if field.name in made
        else pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(n, field.type)
        for field in wanted
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=wanted)


def _offsets(lengths: Iterable[int]) -> pa.Array:
    return pa.array(np.array([0, *accumulate(lengths)], np.int32))


def _list_of_bytes(parts: Iterable[bytes], lengths: Iterable[int], dtype: Any) -> pa.ListArray:
    values = np.frombuffer(b"".join(parts), dtype)
    return pa.ListArray.from_arrays(_offsets(lengths), pa.array(values))


# Checks of the caller's arguments.


def items_of(ranking: Ranking) -> tuple[IdKind, Any]:
    """A ranking's ids as stored; ValueError if its arrays are not those of a ranking."""
    item_ids, scores, propensities = ranking.item_ids, ranking.scores, ranking.log_propensities
    letter: str
    try:
        shape = item_ids.shape
        sound = (
            len(shape) == 1
            and scores.shape == shape == propensities.shape
            and scores.dtype == _FLOAT32
            and propensities.dtype == _FLOAT64
            and ranking.propensity_kind in PROPENSITY_KINDS
        )
        letter = item_ids.dtype.char
    except AttributeError:
        sound, letter = False, ""
    if sound and item_ids.dtype == _INT64:
        return "int64", item_ids.tobytes()
    if sound and letter == "U":
        texts = item_ids.tolist()
        for text in texts:
            if not text.isascii():
                as_text("ranking", text)
        return "str", texts
    raise ValueError(
        "ranking: expected item_ids of int64 or str, scores of float32 and log_propensities of"
        f" float64, one for each item, and a known propensity_kind; got {ranking!r}"
    )


LawColumns: TypeAlias = tuple[str, str, list[tuple[str, float]], str | None]

# The same policy is logged many times.
_last: tuple[Policy | None, LawColumns] = (None, ("", "", [], None))


def law_of_row(policy: Policy) -> LawColumns:
    """The columns policy_name, law, law_params and sampler of a policy."""
    global _last
    known, columns = _last
    if policy is not known:
        columns = _law_columns(policy)
        if is_frozen(policy):
            _last = policy, columns
    return columns


def _law_columns(policy: Policy) -> LawColumns:
    if type(policy) not in _OWN:
        _check_policy(policy)
    params = list(policy.params.items())
    if len(params) > 1:
        params.sort()
    law, sampler = policy.law_name, policy.sampler
    return policy.inference_type, law, params, None if sampler == law else sampler


def _check_policy(policy: Policy) -> None:
    """Check a policy of unknown origin: refuse what cannot be written, or would be set aside.

    No later step would report it: rows are written in the background.
    """
    if not isinstance(policy, Policy) or not isinstance(policy.params, Mapping):
        raise ValueError(f"ranking: expected a policy with params by name, got {shown(policy)}")
    for attribute in ("inference_type", "law_name"):
        if as_text(f"ranking: its policy's {attribute}", getattr(policy, attribute)) == "":
            raise ValueError(f"ranking: its policy's {attribute}: must not be empty")
    if policy.sampler is not None:
        as_text("ranking: its policy's sampler", policy.sampler)
    if len(policy.params) > MAX_PARAMETERS:
        raise ValueError(
            f"ranking: its policy has more than {MAX_PARAMETERS} parameters: {shown(policy)}"
        )
    for name, value in policy.params.items():
        as_text("ranking: a parameter of its policy", name)
        if isinstance(value, bool) or not isinstance(value, Real) or not _is_finite(value):
            raise ValueError(
                f"ranking: its policy's parameter {name}: must be a finite number, got"
                f" {shown(value)}"
            )


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def as_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a str, got {value!r}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name}: not text that UTF-8 can hold: {value!r}") from None
    return value if type(value) is str else str.__str__(value)  # the value of an enum, not its name


def as_user(value: object) -> str:
    if type(value) is str:  # the usual case, checked first
        return as_text("user_id", value)
    plain = plain_id(value)
    return str(plain) if isinstance(plain, int) else as_text("user_id", value)


def as_positive(name: str, value: object, above: float | None = None) -> float:
    if type(value) is float:  # the usual case, checked first
        number = value
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}: expected a real number, got {value!r}")
    else:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not math.isfinite(number) or number < 0.0 or (above is not None and number <= above):
        limit = "at least 0" if above is None else f"above {above:g}"
        raise ValueError(f"{name}: must be finite and {limit}, got {value!r}")
    return number


def as_query(value: npt.ArrayLike) -> bytes:
    array = as_real("query", value)
    if array.ndim != 1:
        raise ValueError(f"query: expected shape (d,), got {array.shape}")
    return as_float32("query", array, array.shape).tobytes()


def as_retrieval(value: Mapping[str, Any]) -> dict[str, str]:
    if not isinstance(value, Mapping) or not set(value) <= {"name", "version", "params"}:
        raise ValueError(
            f"retrieval: expected a mapping of name, version and params, got {value!r}"
        )
    texts: dict[str, str] = {}
    for name, given in value.items():
        if given is None:
            continue
        if name == "params" and not isinstance(given, str):
            try:
                given = json.dumps(given, sort_keys=True)
            except (TypeError, ValueError) as error:
                raise ValueError(f"retrieval: params: {error}") from None
        texts[name] = as_text(f"retrieval: {name}", given)
    return texts


def as_score_columns(score: Score) -> dict[str, str]:
    """The column `score`: name, hash and parameters, as JSON."""
    return {
        "name": as_text("ranking: score", score.name),
        "hash": score.hash,
        "params": as_text("ranking: params of its score", score.params_text),
    }


def as_rules_columns(applied: AppliedRules) -> dict[str, str] | None:
    """The column `rules`: id and parameters, as JSON; None for empty rules.

    A next page without rules has empty ones.
    """
    if not isinstance(applied, AppliedRules) or not isinstance(applied.rules, Rules):
        raise ValueError(f"ranking: rules: expected AppliedRules, got {shown(applied)}")
    if applied.rules == _NO_RULES:
        return None
    try:
        params = AppliedRules(applied.rules, as_params(applied.params)).params_text
    except ValueError as error:
        raise ValueError(f"ranking: rules: {error}") from None
    return {"id": applied.rules.id, "params": params}


def as_rewards(values: Any, length: int) -> list[float | None]:
    given = as_column("rewards", values, f"{length}, one for each item")
    if isinstance(given, np.ndarray):
        given = given.tolist() if given.ndim == 1 else []
    if len(given) != length:
        raise ValueError(f"rewards: expected {length}, one for each item, got {shown(values)}")
    rewards: list[float | None] = []
    for place, value in enumerate(given):
        if value is not None and (isinstance(value, str | bytes) or not isinstance(value, Real)):
            raise ValueError(f"rewards: place {place}: expected a number or None, got {value!r}")
        try:
            number = math.nan if value is None else float(value)
        except OverflowError:  # an integer, or a fraction, beyond float64
            number = math.inf
        if math.isinf(number):
            raise ValueError(f"rewards: place {place}: must be finite, got {shown(value)}")
        rewards.append(None if math.isnan(number) else number)
    return rewards


def as_evaluated(values: Any, length: int) -> list[tuple[str, list[float]]]:
    """Log-propensities under further policies, by name."""
    name = "evaluation_log_propensities"
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}: expected a mapping of names to arrays, got {shown(values)}")
    found = []
    for key, given in values.items():
        if as_text(name, key) == "":
            raise ValueError(f"{name}: a name must not be empty")
        array = np.asarray(as_real(f"{name}: {key}", given), np.float64)
        if array.shape != (length,):
            raise ValueError(
                f"{name}: {key}: expected shape ({length},), one for each item, got {array.shape}"
            )
        wrong = np.isnan(array) | (array > _ROUNDING)
        if wrong.any():
            raise ValueError(
                f"{name}: {key}: expected logarithms of probabilities, got {array[wrong][0]}"
            )
        found.append((key, array.tolist()))
    return found


def as_time(name: str, value: object) -> int:
    """Microseconds since 1970, UTC."""
    if isinstance(value, np.datetime64) and not np.isnat(value):
        return int((value - _EPOCH) // np.timedelta64(1, "us"))
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{name}: says no time zone, got {value!r}")
        since = value - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{name}: out of range, got {value}")
        return int(value)
    raise ValueError(f"{name}: expected a datetime with a time zone, got {value!r}")
