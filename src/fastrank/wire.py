"""The wire: what a server is asked and what it answers, as bytes; nothing about how it is served.

There is this one reader of requests. A server takes what `read` takes and `checked` passes; who has
kept requests and answers, as SageMaker's Data Capture has, reads them again by the same rules.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import unquote_plus

import msgspec

from fastrank.ids import MAX_LENGTH, integer, split_ids

__all__ = [
    "LINES",
    "MAX_PARAMS",
    "MAX_SCORE",
    "MAX_TEXT",
    "Answer",
    "ItemKind",
    "PolicyName",
    "Request",
    "RequestError",
    "RequestIdSource",
    "Retrieval",
    "ScoreName",
    "checked",
    "encoded",
    "lines_of",
    "read",
    "read_parameters",
    "short",
]

MAX_TEXT = 256  # characters of a request_id or inference_type
MAX_SCORE = 10_000  # characters of a score
MAX_PARAMS = 100  # of a score, each a text of at most MAX_TEXT characters
MAX_SHOWN = 100  # characters of a value that an error repeats
# Content types whose every line is a body, and every line of the answer an answer.
LINES = ("application/jsonlines", "application/x-jsonlines", "application/x-ndjson")

ItemId: TypeAlias = int | str
ItemKind: TypeAlias = Literal["int64", "str"]
RequestIdSource: TypeAlias = Literal["server", "header", "body"]


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
    head: int | None = None
    m: int | None = None
    factor: float | None = None
    exclude: list[ItemId] | None = None
    allow: list[ItemId] | None = None
    seed: int | None = None
    request_id: str | None = None
    score: str | None = None
    params: dict[str, float | bool | str] | None = None


class PolicyName(msgspec.Struct, gc=False):
    """The law that drew a ranking."""

    name: str
    params: dict[str, float]


class ScoreName(msgspec.Struct, gc=False):
    """What made scores of dot products: an expression, or a function's name."""

    name: str
    hash: str
    params: dict[str, float | bool | str]


class Retrieval(msgspec.Struct, gc=False):
    """The index that found candidates."""

    name: str
    version: str


class Answer(msgspec.Struct, kw_only=True, gc=False):
    """A log row without its rewards, and without what the request says: filters and a query.

    JSON has no infinity: `log_norm` is null where there was nothing to rank.
    """

    request_id: str
    request_id_source: Annotated[
        RequestIdSource,
        msgspec.Meta(
            description="Who said the id: the server, which drew it; the header"
            " X-Amzn-SageMaker-Inference-Id; or the request's own `request_id`."
        ),
    ]
    traceparent: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="The header of that name, where it came and is valid."),
    ] = msgspec.UNSET
    user_id: str | None
    item_kind: Annotated[
        ItemKind,
        msgspec.Meta(description="Of all item ids here: integers of 64 bits, or text."),
    ]
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
    made_by: Annotated[
        str,
        msgspec.Meta(
            description="`pass`: by a pass over the catalog; `table`: from the masses that are kept"
            " of a user; `index`: from the candidates that an index found."
        ),
    ]
    n_scored: Annotated[
        int, msgspec.Meta(description="Items whose scores it took; by a pass, all eligible ones.")
    ]
    n_candidates: Annotated[
        int | msgspec.UnsetType,
        msgspec.Meta(description="Of `stochastic_flat_tail`: candidates, which an index found."),
    ] = msgspec.UNSET
    retrieval: Annotated[
        Retrieval | msgspec.UnsetType,
        msgspec.Meta(description="Where an index found them: which one."),
    ] = msgspec.UNSET
    n_probes: Annotated[
        int | msgspec.UnsetType,
        msgspec.Meta(description="Where the index has lists: how many it looked into."),
    ] = msgspec.UNSET
    tail_log_weight: Annotated[
        float | msgspec.UnsetType,
        msgspec.Meta(
            description="Logarithm of the weight of each item that is no candidate, on the scale of"
            " score / T."
        ),
    ] = msgspec.UNSET
    is_candidate: Annotated[
        list[bool] | msgspec.UnsetType,
        msgspec.Meta(description="For each place, whether its item was among the candidates."),
    ] = msgspec.UNSET
    model_version: str
    catalog_version: str
    score: Annotated[
        ScoreName | msgspec.UnsetType,
        msgspec.Meta(description="What made `scores` of dot products, where they are none."),
    ] = msgspec.UNSET
    features_version: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="Of the columns that the score has."),
    ] = msgspec.UNSET
    is_fallback: bool
    query: Annotated[
        list[float] | msgspec.UnsetType,
        msgspec.Meta(
            description="What was ranked for, where neither the request nor the model says it:"
            " for a fallback."
        ),
    ] = msgspec.UNSET


encoded = msgspec.json.Encoder().encode


class RequestError(ValueError):
    """A request that is none.

    Attributes
    ----------
    code : str
        For programs: ``malformed_json``, ``invalid_type``, ``unknown_field``, ``duplicate_field``
        and ``user_or_query`` for what has not the form of a request, ``invalid_value`` and
        ``out_of_range`` for values that cannot be.
    message : str
        For people; names the field and the value.
    field, value, allowed
        What is wrong, and what would be right, if that can be said.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str | None = None,
        value: Any = None,
        allowed: Any = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.value = value
        self.allowed = allowed


def lines_of(body: bytes) -> list[bytes]:
    r"""The lines of a body of JSON Lines; the end of the last one begins no other.

    Examples
    --------
    >>> lines_of(b"{}\n{}\n")
    [b'{}', b'{}']
    """
    lines = body.split(b"\n")
    if not lines[-1].strip():
        lines.pop()
    return lines


_REQUEST = msgspec.json.Decoder(Request)
_FIELDS = tuple(Request.__struct_fields__)
_INTEGERS = ("k", "head", "m", "seed")
_FLOATS = ("temperature", "epsilon", "factor")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # as JSON has them
_TEXTS = {
    "user_id": MAX_LENGTH,
    "request_id": MAX_TEXT,
    "inference_type": MAX_TEXT,
    "score": MAX_SCORE,
}
_PATH = re.compile(r" - at `\$\.?(\w*)")
_UNKNOWN = re.compile(r"unknown field `(.*)`")
_NAMED = re.compile(rf'"({"|".join(_FIELDS)}|gateway)"'.encode())


def read(body: bytes) -> Request:
    """The request of a JSON body; O(length).

    A body ``{"gateway": {...}}`` is what API Gateway's template makes: URL-encoded parameters, ''
    for those that are absent, lists as `fastrank.ids.split_ids` reads them.

    Returns
    -------
    Request
        Of the right types; `checked` looks at the values.

    Raises
    ------
    RequestError
        Naming the field.

    Examples
    --------
    >>> read(b'{"query": [1, "2.5"], "k": "3"}').query
    [1.0, 2.5]
    >>> read(b'{"gateway": {"user_id": "O%27Brien", "exclude": "17%2C4711", "k": ""}}').exclude
    ['17', '4711']
    """
    names = _NAMED.findall(body)
    # msgspec takes the last of several members of one name; an escape may hide a name.
    # So it does of the parameters of a score.
    if len(names) > len(set(names)) or b"params" in names or (b"\\" in body and b"\\u" in body):
        _refuse_repeated(body)
    try:
        return _REQUEST.decode(body)
    except msgspec.ValidationError as error:
        members = _members(body)
        gateway = _gateway(members)
        if gateway is not None:
            return read_parameters(gateway)
        if not _read_numbers(members):
            raise _invalid(str(error), members) from None
        return _converted(members)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("malformed_json", f"the body is not JSON: {error}") from None


def read_parameters(parameters: Mapping[str, str]) -> Request:
    """The request of URL parameters, decoded already; '' counts as absent. Otherwise as `read`."""
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
                raise RequestError(
                    "invalid_value",
                    str(error),
                    field=name,
                    value=text,
                    allowed="ids separated by commas, in double quotes where they hold one",
                ) from None
        elif name == "query":
            given[name] = text.split(",")
        elif name == "params":
            given[name] = _object(text)
    _read_numbers(given)
    return _converted(given)


def checked(request: Request) -> Request:
    """The same request, if its values can be; a RequestError that names the field if not."""
    for name, most in _TEXTS.items():
        text = getattr(request, name)
        if text is not None and not 0 < len(text) <= most:
            raise RequestError(
                "invalid_value",
                f"{name}: expected 1 to {most} characters, got {len(text)}",
                field=name,
                value=text,
                allowed=f"1 to {most} characters",
            )
    if (request.user_id is None) == (request.query is None):
        which = "neither" if request.user_id is None else "both"
        raise RequestError(
            "user_or_query",
            f"user_id, query: exactly one of them is wanted, got {which}",
            field="user_id",
            allowed="user_id or query",
        )
    if request.query is not None:
        for j, value in enumerate(request.query):
            if not math.isfinite(value) or abs(value) > 3.4e38:
                raise RequestError(
                    "invalid_value",
                    f"query: entry {j}: expected a finite float32, got {value!r}",
                    field="query",
                    value=str(value),
                    allowed="finite numbers",
                )
    if request.params is not None:
        _check_params(request.params)
    if request.seed is not None and not 0 <= request.seed < 2**64:
        raise RequestError(
            "out_of_range",
            f"seed: expected an integer of 0 to 2^64 - 1, got {request.seed}",
            field="seed",
            value=str(request.seed),
            allowed="0 to 18446744073709551615",
        )
    return request


def _object(text: str) -> Any:
    """The parameters of a score as URLs have them: a JSON object."""
    try:
        found = json.loads(text, parse_constant=float)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RequestError(
            "invalid_type",
            f"params: expected an object, as JSON, got {short(text)!r}",
            field="params",
            value=text,
        )
    return found


def _check_params(params: Mapping[str, float | bool | str]) -> None:
    allowed = f"at most {MAX_PARAMS}, of at most {MAX_TEXT} characters, and finite"
    for name, value in params.items():
        is_long = len(name) > MAX_TEXT or (isinstance(value, str) and len(value) > MAX_TEXT)
        if is_long or (isinstance(value, float) and not math.isfinite(value)):
            raise RequestError(
                "invalid_value",
                f"params: {short(name)!r}: expected {allowed}, got {short(value)!r}",
                field="params",
                value=str(value),
                allowed=allowed,
            )
    if len(params) > MAX_PARAMS:
        raise RequestError(
            "invalid_value",
            f"params: expected {allowed}, got {len(params)}",
            field="params",
            value=len(params),
            allowed=allowed,
        )


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
                raise RequestError(
                    "invalid_type",
                    f"{name}: expected {kind}, got {short(text)!r}",
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
                raise RequestError(
                    "invalid_type",
                    f"query: entry {j}: expected a number, got {short(entry)!r}",
                    field="query",
                    value=entry,
                )
        given["query"] = numbers
        found = True
    return found


def _float(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _refuse_repeated(body: bytes) -> None:
    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise RequestError(
                    "duplicate_field", f"{name}: given more than once", field=name[:MAX_TEXT]
                )
            found[name] = value
        return found

    try:
        json.loads(body, object_pairs_hook=members)
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise RequestError("malformed_json", f"the body is not JSON: {error}") from None


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
        raise RequestError(
            "invalid_type", "gateway: expected an object", field="gateway", value=inner
        )
    found: dict[str, str] = {}
    for name, value in inner.items():
        if not isinstance(value, str):
            raise RequestError(
                "invalid_type", f"{name}: expected text in gateway", field=name, value=value
            )
        found[name] = unquote_plus(value, errors="strict") if _decodable(value) else value
    return found


def _decodable(text: str) -> bool:
    try:
        unquote_plus(text, errors="strict")
    except UnicodeDecodeError:
        return False
    return True


def _invalid(message: str, members: Mapping[str, Any]) -> RequestError:
    """What msgspec says, with the field and the value."""
    unknown = _UNKNOWN.search(message)
    if unknown is not None:
        return _unknown(unknown[1])
    path = _PATH.search(message)
    field = path[1] if path is not None and path[1] else None
    what = message.split(" - at ")[0]
    if field is None:
        return RequestError("invalid_type", f"the body: {what}")
    value = members.get(field)
    got = f"; got {short(value)!r}" if field in members else ""
    text = f"{field}: {what[0].lower()}{what[1:]}{got}"
    if field in _TEXTS and isinstance(value, int) and not isinstance(value, bool):
        text = f'{field}: expected text, got the number {short(value)}; send "{short(value)}"'
    return RequestError(
        "invalid_type",
        text,
        field=field,
        value=value,
    )


def _unknown(name: str) -> RequestError:
    allowed = list(_FIELDS)
    return RequestError(
        "unknown_field",
        f"{name[:MAX_TEXT]}: not a field of a request: {', '.join(allowed)}",
        field=name[:MAX_TEXT],
        allowed=allowed,
    )


def short(value: Any) -> Any:
    """A value as an error may repeat it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) < 2**63 and math.isfinite(value):
        return value
    try:
        text = value if isinstance(value, str) else repr(value)
    except RecursionError:  # it came through a parser that goes a little deeper
        text = f"a {type(value).__name__} of too many levels"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
