"""The server's side of the wire format (`fastrank.wire`): the policy that a request names, the
answer that carries a ranking, the errors of HTTP.

An answer is the log row of its ranking, without the rewards. On SageMaker, where the disk does not
outlive the container, Data Capture stores the answers, and `fastrank.eventlog.from_data_capture`
reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

import fastrank as fr
from fastrank.arraytypes import FloatArray
from fastrank.inputs import new_request_id
from fastrank.policies import PARAMETERS, completed, inference_type_of, names_of, parameters_of
from fastrank.wire import (
    MAX_TEXT,
    Answer,
    GatewayRequest,
    PolicyName,
    Request,
    RequestError,
    RequestIdSource,
    Retrieval,
    RulesBody,
    RulesName,
    ScoreName,
    SeedSource,
    checked,
    encoded,
    read,
    read_parameters,
)
from fastrank.wire import short as _short

__all__ = [
    "LATE",
    "MAX_TEXT",
    "Answer",
    "Origin",
    "PolicyName",
    "ProblemError",
    "Request",
    "Served",
    "answer_of",
    "encoded",
    "error_body",
    "field_of",
    "invalid_value",
    "names_policy",
    "origin_of",
    "out_of_range",
    "parse",
    "parse_parameters",
    "policy_of",
    "refuse_repeated",
    "traceparent_of",
]

LATE = "fastrank.late"  # key in a scope: the body did not arrive in time, and is incomplete
_RANGES = {
    name: f"{each.low} to {each.high}" if each.is_integer else f"{each.low:g} to {each.high:g}"
    for name, each in PARAMETERS.items()
}
_OF_RULES = re.compile(r"rules: (\w+)(?:\[(['\"]?)(.+?)\2\])?: ")
# Codes of requests whose form is right.
_UNPROCESSABLE = ("invalid_value", "out_of_range")


class ProblemError(Exception):
    """A request that is answered by an error.

    Attributes
    ----------
    status : int
        Status of the HTTP answer.
    code : str
        For programs.
    message : str
        For people; names the field and the value.
    field, value, allowed
        What is wrong, and what would be right, if known.
    retry_after : int or None
        Seconds; also in the body, because API Gateway passes on no header of a model's error.
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
    """A 422 for a value of the right type that is out of range."""
    return _unprocessable("out_of_range", name, value, f"expected {allowed}, got", allowed)


def invalid_value(name: str, value: int | str, allowed: str) -> ProblemError:
    """A 422 for a value of the wrong form."""
    return _unprocessable("invalid_value", name, value, f"expected {allowed}; got", allowed)


def _unprocessable(
    code: str, name: str, value: int | str, words: str, allowed: str
) -> ProblemError:
    message = f"{name}: {words} {_short(value)}"
    return ProblemError(422, code, message, field=name, value=value, allowed=allowed)


def field_of(text: str) -> str:
    """The field that the message of a ValueError begins with.

    Examples
    --------
    >>> field_of("k: must be above 0"), field_of("exclude[3]: expected an integer")
    ('k', 'exclude')
    >>> field_of("rules: cap['seller']: must be above 0"), field_of("rules: FlatTail draws by")
    ('rules.cap.seller', 'rules')
    """
    of_rules = _OF_RULES.match(text)
    if of_rules is not None and of_rules[1] in RulesBody.__struct_fields__:
        key = "" if of_rules[3] is None else f".{of_rules[3][:MAX_TEXT]}"
        return f"rules.{of_rules[1]}{key}"
    return re.split(r"[:\[]", text, maxsplit=1)[0]


def error_body(problem: ProblemError, request_id: str | None) -> bytes:
    """The JSON body of an error."""
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


def parse(body: bytes, max_ids: int | None = None) -> Request:
    """Parse a JSON body with `fastrank.wire.read`, and check it.

    Raises
    ------
    ProblemError
        400 or 422, naming the field.
    """
    try:
        return checked(read(body, max_ids))
    except RequestError as error:
        raise _problem(error) from None


def parse_parameters(parameters: Mapping[str, str]) -> Request:
    """Parse decoded URL parameters; '' counts as absent. Otherwise like `parse`."""
    try:
        return checked(read_parameters(parameters))
    except RequestError as error:
        raise _problem(error) from None


def refuse_repeated(parameters: Sequence[tuple[str, str]]) -> None:
    """Raise ProblemError if a URL parameter is repeated."""
    seen: set[str] = set()
    for name, _ in parameters:
        if name in seen:
            shortened = name[:MAX_TEXT]
            words = f"{shortened}: given more than once; separate the values of a list by commas"
            raise ProblemError(400, "duplicate_field", words, field=shortened)
        seen.add(name)


def _problem(error: RequestError) -> ProblemError:
    status = 422 if error.code in _UNPROCESSABLE else 400
    return ProblemError(
        status,
        error.code,
        error.message,
        field=error.field,
        value=error.value,
        allowed=error.allowed,
    )


# ---- Where a request comes from --------------------------------------------------------------


class Origin(msgspec.Struct, frozen=True):
    """The request's id, the caller's own id for it, and its trace."""

    request_id: str
    request_id_source: RequestIdSource
    inference_id: str | None
    traceparent: str | None


def origin_of(
    request: Request,
    inference_id: str | None = None,
    traceparent: str | None = None,
    *,
    has_gateway: bool = False,
) -> Origin:
    """The origin, by the request's own id, which a gateway may have drawn, or else by a new id.

    An inference id is only a label: callers may use one for all requests of a session.
    """
    if request.request_id is not None:
        of_gateway = has_gateway and isinstance(request, GatewayRequest)
        source: RequestIdSource = "gateway" if of_gateway else "body"
        return Origin(request.request_id, source, inference_id, traceparent)
    return Origin(new_request_id(), "server", inference_id, traceparent)


# version-traceid-parentid-flags; ids of zeros and version ff are invalid.
_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


def traceparent_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The trace of a request in W3C Trace Context; None if there is none, or it is invalid.

    Versions after 00 may have more after the flags, which is dropped.

    Examples
    --------
    >>> trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    >>> traceparent_of([(b"traceparent", trace)])
    '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    >>> traceparent_of([(b"traceparent", trace), (b"traceparent", trace)])
    """
    found = [value.strip(b" \t") for name, value in headers if name == b"traceparent"]
    valid = _TRACEPARENT.match(found[0]) if len(found) == 1 else None
    if valid is None:
        return None
    rest = found[0][valid.end() :]
    later = not valid[0].startswith(b"00")
    return valid[0].decode() if not rest or (later and rest.startswith(b"-")) else None


# ---- Policies -------------------------------------------------------------------------------


def names_policy(request: Request) -> bool:
    """Whether a request states a policy, or a part of one."""
    if request.inference_type is not None:
        return True
    return any(getattr(request, parameter) is not None for parameter in PARAMETERS)


def policy_of(request: Request, default: fr.Policy, *usual: fr.Policy | None) -> fr.Policy:
    """The policy of a request; if it names none, the server's own, with the request's parameters.

    Parameters
    ----------
    request : Request
    default : Policy
        The server's own.
    *usual : Policy or None
        Such as the model's: parameters that neither the request nor the server's policy has come
        from the first of these that has them.

    Raises
    ------
    ProblemError
        For an unknown name, or for parameters that the policy does not take.
    """
    asked = tuple([getattr(request, parameter) for parameter in PARAMETERS])
    return _policy(request.inference_type, asked, default, *usual)


@lru_cache(maxsize=1024)  # 2 us; errors are not cached
def _policy(
    name: str | None,
    values: tuple[float | None, ...],
    default: fr.Policy,
    *usual: fr.Policy | None,
) -> fr.Policy:
    asked = dict(zip(PARAMETERS, values, strict=True))
    if name is None and not any(value is not None for value in asked.values()):
        return default
    try:
        chosen = default.inference_type if name is None else inference_type_of(name)
    except ValueError as error:
        raise ProblemError(
            422,
            "unknown_inference_type",
            str(error),
            field="inference_type",
            value=name,
            allowed=names_of(fr.INFERENCE_TYPES),
        ) from None
    accepted = parameters_of(chosen)
    params = {}
    for key, value in asked.items():
        if value is None:
            continue
        if key not in accepted:
            raise ProblemError(
                422,
                "invalid_value",
                f"{key}: {name or chosen} does not take it: it takes"
                f" {', '.join(accepted) or 'no parameters'}",
                field=key,
                value=value,
                allowed=list(accepted),
            )
        params[key] = value
    try:
        return completed(chosen, params, default, *usual)
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


class Served(msgspec.Struct, frozen=True):
    """What an answer states besides its ranking."""

    origin: Origin
    user_id: str | None
    k: int
    model_version: str
    seed_source: SeedSource
    is_fallback: bool
    user_temperature: float | None
    query: list[float] | msgspec.UnsetType = msgspec.UNSET
    rules_name: str | None = None
    has_rules: bool = False  # by name or in the request
    experiment: str | None = None
    arm: str | None = None
    revision: str | None = None


def answer_of(
    ranking: fr.Ranking, served: Served, also: Mapping[str, FloatArray] | None = None
) -> Answer:
    """The answer that carries a ranking, and its log-propensities under further policies."""
    params = ranking.policy.params
    if served.user_temperature is not None:
        params = {**params, "user_temperature": served.user_temperature}
    answer = Answer(
        request_id=served.origin.request_id,
        request_id_source=served.origin.request_id_source,
        inference_id=served.origin.inference_id or msgspec.UNSET,
        traceparent=served.origin.traceparent or msgspec.UNSET,
        user_id=served.user_id,
        item_kind="str" if ranking.item_ids.dtype.kind == "U" else "int64",
        item_ids=ranking.item_ids.tolist(),
        scores=ranking.scores.tolist(),
        log_propensities=ranking.log_propensities.tolist(),
        log_propensity=ranking.log_propensity,
        log_norm=ranking.log_norm,
        propensity_kind=ranking.propensity_kind,
        log_norm_error=ranking.log_norm_error,
        k=served.k,
        policy=PolicyName(ranking.policy.inference_type, params),
        experiment=served.experiment or msgspec.UNSET,
        arm=served.arm or msgspec.UNSET,
        revision=served.revision or msgspec.UNSET,
        seed=ranking.seed,
        seed_source=served.seed_source,
        rng_version=fr.RNG_VERSION,
        n_eligible=ranking.n_eligible,
        made_by=ranking.made_by or "pass",
        n_scored=ranking.n_eligible if ranking.n_scored is None else ranking.n_scored,
        model_version=served.model_version,
        catalog_version=ranking.catalog_version,
        is_fallback=served.is_fallback,
        query=served.query,
    )
    if also is not None:  # JSON has no infinity; msgspec writes null
        answer.evaluation_log_propensities = {name: v.tolist() for name, v in also.items()}
    found = ranking.candidates
    if found is not None:
        answer.n_candidates = found.n_found
        answer.tail_log_weight = found.tail_log_weight
        answer.is_candidate = found.is_candidate.tolist()
        if found.retrieval is not None:
            answer.retrieval = Retrieval(**found.retrieval)
        if found.n_probes is not None:
            answer.n_probes = found.n_probes
    if ranking.score is not None:
        answer.score = ScoreName(*ranking.score)
    if ranking.features_version is not None:
        answer.features_version = ranking.features_version
    if ranking.seen_id is not None:
        answer.seen_id = ranking.seen_id
    if served.has_rules and ranking.rules is not None:
        rules = ranking.rules.rules
        answer.rules = RulesName(rules.id, ranking.rules.params)
        if served.rules_name is not None:
            answer.rules.name = served.rules_name
            answer.rules.content = rules.to_dict()
    return answer
