"""What goes over the wire: requests, answers and errors, and nothing about how they are served.

An answer is the log row of its ranking, without the rewards: on SageMaker, where the disk does not
outlive the container, Data Capture carries it away and `fastrank.eventlog.from_data_capture` reads
it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

import msgspec

import fastrank as fr
from fastrank.ids import MAX_LENGTH, integer, split_ids
from fastrank.policies import MAX_TEMPERATURE, MIN_TEMPERATURE

__all__ = [
    "Answer",
    "PolicyName",
    "ProblemError",
    "Request",
    "answer_of",
    "encoded",
    "error_body",
    "invalid_value",
    "out_of_range",
    "parse",
    "parse_parameters",
    "policy_of",
]

MAX_TEXT = 256  # characters of a request_id or inference_type
LATE = "fastrank.late"  # in a scope: the body did not come in time, and is not whole
_RANGES = {"temperature": f"{MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}", "epsilon": "0 to 1"}
MAX_SHOWN = 100  # characters of a value that an error repeats

ItemId = int | str


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may be asked; exactly one of `user_id` and `query`.

    Numbers may come as text: ``"5"`` is 5. An integer is written as one: 5.0, ``"05"`` and
    ``"1_000"`` are none, and where ids are text, ``"05"`` is not ``"5"``.
    """

    user_id: str | None = None
    query: list[float] | None = None
    k: int = 10
    inference_type: str | None = None
    temperature: float | None = None
    epsilon: float | None = None
    exclude: list[ItemId] | None = None
    allow: list[ItemId] | None = None
    seed: int | None = None
    request_id: str | None = None


class PolicyName(msgspec.Struct):
    """The law that drew a ranking."""

    name: str
    params: dict[str, float]


class Answer(msgspec.Struct, kw_only=True):
    """A log row without its rewards."""

    request_id: str
    user_id: str | None
    item_ids: list[Any]
    scores: list[float]
    log_propensities: list[float]
    log_propensity: float
    log_norm: float | None
    propensity_kind: str
    log_norm_error: float
    k: int
    policy: PolicyName
    seed: int
    seed_source: str
    rng_version: int
    n_eligible: int
    model_version: str
    catalog_version: str
    is_fallback: bool


class ProblemError(Exception):
    """A request that is answered by an error.

    Attributes
    ----------
    status : int
        Of the HTTP answer.
    code : str
        For programs.
    message : str
        For people; names the field and the value.
    field, value, allowed
        What is wrong, and what would be right, if that can be said.
    retry_after : int or None
        Seconds; also in the body, because API Gateway hands on no header of a model's error.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        value: Any = None,
        allowed: Any = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.value = value
        self.allowed = allowed
        self.retry_after = retry_after


def out_of_range(name: str, value: int | str, allowed: str) -> ProblemError:
    """A 422 for a value of the right type."""
    return _unprocessable("out_of_range", name, value, f"expected {allowed}, got", allowed)


def invalid_value(name: str, value: int | str, allowed: str) -> ProblemError:
    """A 422 for a value of another form."""
    return _unprocessable("invalid_value", name, value, f"expected {allowed}; got", allowed)


def _unprocessable(
    code: str, name: str, value: int | str, words: str, allowed: str
) -> ProblemError:
    message = f"{name}: {words} {_short(value)}"
    return ProblemError(422, code, message, field=name, value=value, allowed=allowed)


def error_body(problem: ProblemError, request_id: str | None) -> bytes:
    """The JSON of an error."""
    return msgspec.json.encode(
        {
            "error": {
                "code": problem.code,
                "field": problem.field,
                "value": _short(problem.value),
                "allowed": problem.allowed,
                "message": problem.message,
                "request_id": request_id,
                "retry_after_s": problem.retry_after,
            }
        }
    )


# ---- Requests -------------------------------------------------------------------------------

_REQUEST = msgspec.json.Decoder(Request)
_FIELDS = tuple(Request.__struct_fields__)
_NAMES = frozenset(name.encode() for name in (*_FIELDS, "gateway"))
_INTEGERS = ("k", "seed")
_FLOATS = ("temperature", "epsilon")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # as JSON has them
_TEXTS = {"user_id": MAX_LENGTH, "request_id": MAX_TEXT, "inference_type": MAX_TEXT}
_PATH = re.compile(r" - at `\$\.?(\w*)")
_UNKNOWN = re.compile(r"unknown field `(.*)`")
# What msgspec must not be left alone with: a name that comes twice, an escape that may hide one.
_SUSPECT = re.compile(rf'"({"|".join(_FIELDS)}|gateway)"|\\u'.encode())


def parse(body: bytes) -> Request:
    """The request of a JSON body.

    A body ``{"gateway": {...}}`` is what API Gateway's template makes: URL-encoded parameters, ''
    for those that are absent, lists as `fastrank.ids.split_ids` reads them.

    Raises
    ------
    ProblemError
        400 or 422, naming the field.
    """
    found = _SUSPECT.findall(body)
    if len(found) > len(set(found)) or not _NAMES.issuperset(found):
        _refuse_repeated(body)
    try:
        request = _REQUEST.decode(body)
    except msgspec.ValidationError as error:
        members = _members(body)
        gateway = _gateway(members)
        if gateway is not None:
            return parse_parameters(gateway)
        if not _read_numbers(members):
            raise _invalid(str(error), members) from None
        request = _converted(members)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(400, "malformed_json", f"the body is not JSON: {error}") from None
    return _checked(request)


def parse_parameters(parameters: Mapping[str, str]) -> Request:
    """The request of URL parameters, decoded already; '' counts as absent."""
    given: dict[str, Any] = {}
    for name, text in parameters.items():
        if name not in _FIELDS:
            raise _unknown(name)
        if text == "":
            continue
        given[name] = text
        if name in ("exclude", "allow"):
            try:
                given[name] = split_ids(name, text)
            except ValueError as error:
                raise ProblemError(
                    422,
                    "invalid_value",
                    str(error),
                    field=name,
                    value=text,
                    allowed="ids separated by commas, in double quotes where they hold one",
                ) from None
        elif name == "query":
            given[name] = text.split(",")
    _read_numbers(given)
    return _checked(_converted(given))


def _converted(given: Mapping[str, Any]) -> Request:
    try:
        return msgspec.convert(given, Request)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), given) from None


def _read_numbers(given: dict[str, Any]) -> bool:
    """Put numbers in the place of texts that say one; whether there was any.

    msgspec would do it, and would take "null" for an absent number and 2^53 + 1 for 2^53.
    """
    found = False
    for name in (*_INTEGERS, *_FLOATS):
        text = given.get(name)
        if isinstance(text, str):
            number = integer(text) if name in _INTEGERS else _float(text)
            if number is None:
                kind = "an integer" if name in _INTEGERS else "a number"
                raise ProblemError(
                    400,
                    "invalid_type",
                    f"{name}: expected {kind}, got {_short(text)!r}",
                    field=name,
                    value=text,
                )
            given[name] = number
            found = True
    query = given.get("query")
    if isinstance(query, list) and any(isinstance(entry, str) for entry in query):
        numbers = [_float(entry) if isinstance(entry, str) else entry for entry in query]
        for j, (number, entry) in enumerate(zip(numbers, query, strict=True)):
            if number is None and isinstance(entry, str):
                raise ProblemError(
                    400,
                    "invalid_type",
                    f"query: entry {j}: expected a number, got {_short(entry)!r}",
                    field="query",
                    value=entry,
                )
        given["query"] = numbers
        found = True
    return found


def _float(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _checked(request: Request) -> Request:
    for name, most in _TEXTS.items():
        text = getattr(request, name)
        if text is not None and not 0 < len(text) <= most:
            raise ProblemError(
                422,
                "invalid_value",
                f"{name}: expected 1 to {most} characters, got {len(text)}",
                field=name,
                value=text,
                allowed=f"1 to {most} characters",
            )
    if (request.user_id is None) == (request.query is None):
        which = "neither" if request.user_id is None else "both"
        raise ProblemError(
            400,
            "user_or_query",
            f"user_id, query: exactly one of them is wanted, got {which}",
            field="user_id",
            allowed="user_id or query",
        )
    if request.query is not None:
        for j, value in enumerate(request.query):
            if not math.isfinite(value) or abs(value) > 3.4e38:
                raise ProblemError(
                    422,
                    "invalid_value",
                    f"query: entry {j}: expected a finite float32, got {value!r}",
                    field="query",
                    value=str(value),
                    allowed="finite numbers",
                )
    if request.seed is not None and not 0 <= request.seed < 2**64:
        raise ProblemError(
            422,
            "out_of_range",
            f"seed: expected an integer of 0 to 2^64 - 1, got {request.seed}",
            field="seed",
            value=str(request.seed),
            allowed="0 to 18446744073709551615",
        )
    return request


def _refuse_repeated(body: bytes) -> None:
    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ProblemError(
                400, "duplicate_field", f"{twice}: given more than once", field=twice[:MAX_TEXT]
            )
        return found

    try:
        json.loads(body, object_pairs_hook=members)
    except (ValueError, RecursionError) as error:
        raise ProblemError(400, "malformed_json", f"the body is not JSON: {error}") from None


def _members(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _gateway(members: Mapping[str, Any]) -> dict[str, str] | None:
    """The parameters of a body that API Gateway's template made; None for any other."""
    inner = members.get("gateway")
    if inner is None or len(members) > 1:
        return None
    if not isinstance(inner, dict):
        raise ProblemError(
            400, "invalid_type", "gateway: expected an object", field="gateway", value=inner
        )
    found: dict[str, str] = {}
    for name, value in inner.items():
        if not isinstance(value, str):
            raise ProblemError(
                400, "invalid_type", f"{name}: expected text in gateway", field=name, value=value
            )
        found[name] = unquote_plus(value, errors="strict") if _decodable(value) else value
    return found


def _decodable(text: str) -> bool:
    try:
        unquote_plus(text, errors="strict")
    except UnicodeDecodeError:
        return False
    return True


def _invalid(message: str, members: Mapping[str, Any]) -> ProblemError:
    """What msgspec says, with the field and the value."""
    unknown = _UNKNOWN.search(message)
    if unknown is not None:
        return _unknown(unknown[1])
    path = _PATH.search(message)
    field = path[1] if path is not None and path[1] else None
    what = message.split(" - at ")[0]
    if field is None:
        return ProblemError(400, "invalid_type", f"the body: {what}")
    value = members.get(field)
    got = f"; got {_short(value)!r}" if field in members else ""
    text = f"{field}: {what[0].lower()}{what[1:]}{got}"
    if field in _TEXTS and isinstance(value, int) and not isinstance(value, bool):
        text = f'{field}: expected text, got the number {_short(value)}; send "{_short(value)}"'
    return ProblemError(
        400,
        "invalid_type",
        text,
        field=field,
        value=value,
    )


def _unknown(name: str) -> ProblemError:
    allowed = list(_FIELDS)
    return ProblemError(
        400,
        "unknown_field",
        f"{name[:MAX_TEXT]}: not a field of a request: {', '.join(allowed)}",
        field=name[:MAX_TEXT],
        allowed=allowed,
    )


def _short(value: Any) -> Any:
    """A value as an error may repeat it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) < 2**63 and math.isfinite(value):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


# ---- Policies -------------------------------------------------------------------------------


def policy_of(request: Request, default: fr.Policy) -> fr.Policy:
    """The policy that a request names; the server's own, with other parameters, if it names none.

    Raises
    ------
    ProblemError
        For an unknown name, or parameters that it does not take.
    """
    return _policy(request.inference_type, request.temperature, request.epsilon, default)


@lru_cache(maxsize=1024)  # 2 us; errors are not kept
def _policy(
    name: str | None, temperature: float | None, epsilon: float | None, default: fr.Policy
) -> fr.Policy:
    if name is None and temperature is None and epsilon is None:
        return default
    if name is not None and name not in fr.INFERENCE_TYPES:
        allowed = list(fr.INFERENCE_TYPES)
        raise ProblemError(
            422,
            "unknown_inference_type",
            f"inference_type: expected one of {', '.join(allowed)}; got {_short(name)!r}",
            field="inference_type",
            value=name,
            allowed=allowed,
        )
    chosen = name or default.inference_type
    accepted = fr.INFERENCE_TYPES[chosen][2]
    params = {key: default.params[key] for key in accepted if key in default.params}
    for key, value in (("temperature", temperature), ("epsilon", epsilon)):
        if value is None:
            continue
        if key not in accepted:
            raise ProblemError(
                422,
                "invalid_value",
                f"{key}: {chosen} does not take it",
                field=key,
                value=value,
                allowed=list(accepted),
            )
        params[key] = value
    try:
        return fr.policy(chosen, **params)
    except ValueError as error:
        text = str(error)
        field = text.split(":", 1)[0]
        raise ProblemError(
            422,
            "out_of_range",
            text,
            field=field if field in _RANGES else None,
            value=params.get(field),
            allowed=_RANGES.get(field),
        ) from None


# ---- Answers --------------------------------------------------------------------------------


class Served(NamedTuple):
    """What an answer says besides its ranking."""

    request_id: str
    user_id: str | None
    k: int
    model_version: str
    seed_source: str
    is_fallback: bool
    user_temperature: float | None


def answer_of(ranking: fr.Ranking, served: Served) -> Answer:
    """The answer that carries a ranking."""
    params = dict(ranking.policy.params)
    if served.user_temperature is not None:
        params["user_temperature"] = served.user_temperature
    return Answer(
        request_id=served.request_id,
        user_id=served.user_id,
        item_ids=ranking.item_ids.tolist(),
        scores=ranking.scores.tolist(),
        log_propensities=ranking.log_propensities.tolist(),
        log_propensity=ranking.log_propensity,
        log_norm=ranking.log_norm,
        propensity_kind=ranking.propensity_kind,
        log_norm_error=ranking.log_norm_error,
        k=served.k,
        policy=PolicyName(ranking.policy.inference_type, params),
        seed=ranking.seed,
        seed_source=served.seed_source,
        rng_version=fr.RNG_VERSION,
        n_eligible=ranking.n_eligible,
        model_version=served.model_version,
        catalog_version=ranking.catalog_version,
        is_fallback=served.is_fallback,
    )


encoded = msgspec.json.Encoder().encode
