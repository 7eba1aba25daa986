"""The wire format: requests and answers of a server as bytes, apart from how they are served.

This is the only reader of requests. A server accepts what `read` and `checked` accept. Requests and
answers that were stored, as by SageMaker's Data Capture, are read by the same rules.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias
from urllib.parse import unquote_plus

import msgspec

from fastrank.ids import MAX_LENGTH, integer, split_ids

__all__ = [
    "LINES",
    "MAX_PARAMS",
    "MAX_QUERY",
    "MAX_RULES",
    "MAX_RULES_ENTRIES",
    "MAX_SCORE",
    "MAX_TEXT",
    "Answer",
    "GatewayRequest",
    "ItemKind",
    "PolicyName",
    "Request",
    "RequestError",
    "RequestIdSource",
    "Retrieval",
    "RulesBody",
    "RulesName",
    "ScoreName",
    "SeedSource",
    "checked",
    "encoded",
    "lines_of",
    "read",
    "read_parameters",
    "short",
]

MAX_TEXT = 256  # characters of a request_id or inference_type
MAX_SCORE = 10_000  # characters of a score
MAX_PARAMS = 100  # of a score; texts have at most MAX_TEXT characters
MAX_RULES = 65_536  # bytes of rules within a request
MAX_RULES_ENTRIES = 100  # for each kind of rule
MAX_QUERY = 65_536  # numbers of a query
MAX_GATEWAY = 65_536  # bytes of the parameters of a URL
MAX_SHOWN = 100  # characters of a value that an error quotes
# Content types of requests and answers with one body per line.
LINES = ("application/jsonlines", "application/x-jsonlines", "application/x-ndjson")

ItemId: TypeAlias = int | str
ItemKind: TypeAlias = Literal["int64", "str"]
RequestIdSource: TypeAlias = Literal["server", "gateway", "header", "body"]
SeedSource: TypeAlias = Literal["server", "caller", "derived"]


class RulesBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Rules within a request: the keys of `fastrank.Rules.to_dict`.

    Places are text, as all keys in JSON: ``{"pin": {"3": "sku-9"}}``.
    """

    where: str | None = None
    cap: dict[str, int] | None = None
    window: dict[str, tuple[int, int]] | None = None
    at_least: dict[str, int] | None = None
    decay: dict[str, float] | None = None
    pin: dict[str, ItemId] | None = None
    pin_where: dict[str, str] | None = None
    boost: dict[str, float] | None = None
    boost_score: dict[str, float] | None = None
    on_empty: Literal["stop", "relax"] | None = None

    @property
    def content(self) -> dict[str, Any]:
        """Return the rules as a dict for `fastrank.Rules.from_dict`."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return {name: value for name, value in found.items() if value is not None}


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A request; exactly one of `user_id` and `query` must be given.

    Numbers may be given as text: ``"5"`` is 5. Integers must be written as integers: 5.0, ``"05"``
    and ``"1_000"`` are refused. If ids are text, ``"05"`` and ``"5"`` are different ids.
    """

    user_id: str | None = None
    query: list[float] | None = None
    k: int | msgspec.UnsetType = msgspec.UNSET  # a server has a default
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
    rules: str | RulesBody | None = None  # a text is the name of rules on the server
    after: list[ItemId] | None = None


class GatewayRequest(Request, kw_only=True):
    """A request in API Gateway's form."""


class PolicyName(msgspec.Struct, gc=False):
    """The law that drew a ranking."""

    name: str
    params: dict[str, float]


class ScoreName(msgspec.Struct, gc=False):
    """The function that computed scores from dot products: an expression, or a function's name."""

    name: str
    hash: str
    params: dict[str, float | bool | str]


class RulesName(msgspec.Struct, gc=False):
    """Rules that a ranking was drawn under, and the parameters of their expressions."""

    id: str
    params: dict[str, float | bool | str]
    name: str | msgspec.UnsetType = msgspec.UNSET
    content: Annotated[
        dict[str, Any] | msgspec.UnsetType,
        msgspec.Meta(description="The rules' content, if the request gave only their name."),
    ] = msgspec.UNSET


class Retrieval(msgspec.Struct, gc=False):
    """The index that found candidates."""

    name: str
    version: str


class Answer(msgspec.Struct, kw_only=True, gc=False):
    """A log row without rewards, and without the parts that the request contains.

    These are filters, items of earlier pages, rules within the request, and a query.
    JSON has no infinity: `log_norm` is null if there was nothing to rank.
    """

    request_id: str
    request_id_source: Annotated[
        RequestIdSource,
        msgspec.Meta(
            description="Source of the id: drawn by the server, set by the gateway in front of it,"
            " or the request's own `request_id`."
        ),
    ]
    inference_id: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="The header X-Amzn-SageMaker-Inference-Id, if it was sent."),
    ] = msgspec.UNSET
    traceparent: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="The header of this name, if it was sent and is valid."),
    ] = msgspec.UNSET
    user_id: str | None
    item_kind: Annotated[
        ItemKind,
        msgspec.Meta(description="Kind of all item ids here: integers of 64 bits, or text."),
    ]
    item_ids: list[ItemId]
    scores: list[float]
    log_propensities: list[float]
    log_propensity: float
    log_norm: float | None
    propensity_kind: str
    log_norm_error: float
    k: int
    policy: PolicyName
    experiment: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(
            description="The experiment of the user's arm; absent if the request names a policy."
        ),
    ] = msgspec.UNSET
    arm: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="The user's arm, whose policy drew the ranking."),
    ] = msgspec.UNSET
    revision: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="Revision of the server's arms, policies and shares."),
    ] = msgspec.UNSET
    evaluation_log_propensities: Annotated[
        dict[str, list[float | None]] | msgspec.UnsetType,
        msgspec.Meta(
            description="Log-propensities of this ranking under further policies, by name, place by"
            " place; null for items that a policy never shows there."
        ),
    ] = msgspec.UNSET
    seed: int
    seed_source: Annotated[
        SeedSource,
        msgspec.Meta(
            description="Source of the seed: drawn by the server, sent by the caller, or derived"
            " from the server's secret and the request."
        ),
    ]
    rng_version: int
    n_eligible: int
    made_by: Annotated[
        str,
        msgspec.Meta(
            description="How the ranking was made. `pass`: by a pass over the catalog; `table`:"
            " from a user's table of masses; `index`: from candidates that an index found."
        ),
    ]
    n_scored: Annotated[
        int, msgspec.Meta(description="Number of items scored; by a pass, all eligible ones.")
    ]
    n_candidates: Annotated[
        int | msgspec.UnsetType,
        msgspec.Meta(description="For `stochastic_flat_tail`, the number of candidates found."),
    ] = msgspec.UNSET
    retrieval: Annotated[
        Retrieval | msgspec.UnsetType,
        msgspec.Meta(description="The index that found the candidates, if one did."),
    ] = msgspec.UNSET
    n_probes: Annotated[
        int | msgspec.UnsetType,
        msgspec.Meta(description="Number of lists that the index read, if it has lists."),
    ] = msgspec.UNSET
    tail_log_weight: Annotated[
        float | msgspec.UnsetType,
        msgspec.Meta(
            description="Logarithm of the weight of each item that is not a candidate, on the scale"
            " of score / T."
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
        msgspec.Meta(description="The function that computed `scores` from dot products, if any."),
    ] = msgspec.UNSET
    features_version: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="Version of the columns that the score or the rules use."),
    ] = msgspec.UNSET
    rules: Annotated[
        RulesName | msgspec.UnsetType,
        msgspec.Meta(description="The rules that the request named or contained."),
    ] = msgspec.UNSET
    seen_id: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(
            description="If items that the user has seen were left out: the id of the model's lists"
            " of seen items, a hash of all lists."
        ),
    ] = msgspec.UNSET
    is_fallback: bool
    query: Annotated[
        list[float] | msgspec.UnsetType,
        msgspec.Meta(
            description="The query that was ranked for, if neither the request nor the model has"
            " it, as for a fallback."
        ),
    ] = msgspec.UNSET


encoded = msgspec.json.Encoder().encode


class RequestError(ValueError):
    """An invalid request.

    Attributes
    ----------
    code : str
        For programs: ``malformed_json``, ``invalid_type``, ``unknown_field``, ``duplicate_field``
        and ``user_or_query`` if the body does not have the form of a request; ``invalid_value``
        and ``out_of_range`` for invalid values.
    message : str
        For people; names the field and the value.
    field, value, allowed
        The field, its value, and the allowed values, if known.
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
    r"""Split a body of JSON Lines into lines; a newline at the end starts no further line.

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
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # as in JSON
_LONGEST_NUMBER = 1024  # characters
_TEXTS = {
    "user_id": MAX_LENGTH,
    "request_id": MAX_TEXT,
    "inference_type": MAX_TEXT,
    "score": MAX_SCORE,
    "rules": MAX_TEXT,
}
_IDS = ("exclude", "allow", "after")
_RULES = RulesBody.__struct_fields__
# Types of the entries of rules, by kind, and how errors describe them.
_ENTRIES: Final[dict[str, tuple[Any, str]]] = {
    "cap": (int, "an integer"),
    "window": (tuple[int, int], "two integers, [most, places in a row]"),
    "at_least": (int, "an integer"),
    "decay": (float, "a number"),
    "pin": (ItemId, "an item id"),
    "pin_where": (str, "an expression, as text"),
    "boost": (float, "a number"),
    "boost_score": (float, "a number"),
}
_GATEWAY = "gateway"
_LARGE = 2 * MAX_QUERY  # bytes: a shorter body cannot have more numbers
_PATH = re.compile(r" - at `\$\.?(\w*)")
_UNKNOWN = re.compile(r"unknown field `(.*)`", re.DOTALL)
_NAMED = re.compile(rf'"({"|".join(_FIELDS)}|{_GATEWAY})"'.encode())


def read(body: bytes, max_ids: int | None = None) -> Request:
    """Read a request from a JSON body; O(length).

    `max_ids` is the largest length of a list of ids: a longer list of integers is refused before
    it is decoded.

    A body ``{"gateway": {...}}`` is made by API Gateway's template. It has URL-encoded parameters,
    '' for absent ones, and lists in the form that `fastrank.ids.split_ids` reads.

    Returns
    -------
    Request
        With the right types; `checked` checks the values.

    Raises
    ------
    RequestError
        If a field is invalid; the message names the field.

    Examples
    --------
    >>> read(b'{"query": [1, "2.5"], "k": "3"}').query
    [1.0, 2.5]
    >>> read(b'{"gateway": {"user_id": "O%27Brien", "exclude": "17%2C4711", "k": ""}}').exclude
    ['17', '4711']
    """
    try:
        return _read(body, max_ids)
    except _NOT_JSON as error:
        raise RequestError("malformed_json", f"the body is not JSON: {error}") from None


def _read(body: bytes, max_ids: int | None) -> Request:
    members = None
    if len(body) > _LARGE:  # refuse a long query before it is decoded
        with contextlib.suppress(msgspec.ValidationError):
            members = _members(body, (*_FIELDS, _GATEWAY))
            _query_count(members.get("query"))
            _ids_count(members, max_ids)
            _look_into(members)
    try:
        request = _REQUEST.decode(body)
    except msgspec.ValidationError as error:
        return _read_otherwise(body, str(error), members)
    if members is not None:
        return request
    names = _NAMED.findall(body)
    # msgspec keeps the last of several members of the same name; escapes may hide a name.
    hidden = b"\\" in body and b"\\u" in body
    has_objects = request.params is not None or isinstance(request.rules, RulesBody)
    if hidden or len(names) > len(set(names)) or has_objects:
        _look_into(_members(body, _FIELDS))
    return request


def read_parameters(parameters: Mapping[str, str], kind: type[Request] = Request) -> Request:
    """Read a request from decoded URL parameters; '' counts as absent. Otherwise as `read`.

    Examples
    --------
    >>> read_parameters({"user_id": "ann", "k": "5", "exclude": "17,23"}).exclude
    ['17', '23']
    """
    given: dict[str, Any] = {}
    for name, text in parameters.items():
        if name not in _FIELDS:
            raise _unknown(name)
        if text == "":
            continue
        given[name] = text
        if name in _IDS:
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
        elif name == "rules" and text.startswith("{"):
            given[name] = _rules(text)
    _read_numbers(given)
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), given) from None


def checked(request: Request) -> Request:
    """Check the values of a request and return it; a RequestError names an invalid field.

    Examples
    --------
    >>> checked(read(b'{"user_id": "ann", "k": 5}')).k
    5
    """
    for name, most in _TEXTS.items():
        text = getattr(request, name)
        if isinstance(text, str) and not 0 < len(text) <= most:
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
            f"user_id, query: expected exactly one of them, got {which}",
            field="user_id",
            allowed="user_id or query",
        )
    if request.query is not None:
        if len(request.query) > MAX_QUERY:
            raise _long_query(len(request.query))
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
            f"seed: expected an integer from 0 to 2^64 - 1, got {request.seed}",
            field="seed",
            value=str(request.seed),
            allowed="0 to 18446744073709551615",
        )
    return request


def _object(text: str) -> dict[str, Any]:
    """Read the parameters of a score from a URL: a JSON object."""
    body = text.encode(errors="surrogatepass")
    try:
        found = msgspec.json.decode(body)
        if isinstance(found, dict):
            _members(body, None, _OF_PARAMS)
            return found
    except _NOT_JSON:
        pass
    raise RequestError(
        "invalid_type",
        f"params: expected an object, as JSON, got {short(text)!r}",
        field="params",
        value=text,
    )


def _rules(text: str) -> RulesBody:
    """Read rules from a URL: a JSON object."""
    body = text.encode(errors="surrogatepass")
    try:
        _look_into_rules(msgspec.Raw(body))
        return msgspec.json.decode(body, type=RulesBody)
    except _NOT_JSON as error:
        raise _bad_rules("", "an object, as JSON", text, f" ({error})") from None


def _check_params(params: Mapping[str, float | bool | str]) -> None:
    for name, value in params.items():
        is_long = len(name) > MAX_TEXT or (isinstance(value, str) and len(value) > MAX_TEXT)
        if is_long or (isinstance(value, float) and not math.isfinite(value)):
            raise _bad_params(value, f"{short(name)!r}: ")
    if len(params) > MAX_PARAMS:
        raise _bad_params(len(params))


def _bad_params(value: Any, which: str = "") -> RequestError:
    allowed = f"at most {MAX_PARAMS}, of at most {MAX_TEXT} characters, and finite"
    return RequestError(
        "invalid_value",
        f"params: {which}expected {allowed}, got {short(value)!r}",
        field="params",
        value=value if which == "" else str(value),
        allowed=allowed,
    )


def _read_numbers(given: dict[str, Any]) -> bool:
    """Replace texts that represent numbers by numbers; return whether there was any.

    msgspec could do this, but would read "null" as an absent number, and 2^53 + 1 as 2^53.
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
    if isinstance(query, list) and len(query) > MAX_QUERY:
        raise _long_query(len(query))
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
    return float(text) if len(text) <= _LONGEST_NUMBER and _NUMBER.fullmatch(text) else None


def _long_query(count: int) -> RequestError:
    allowed = f"at most {MAX_QUERY} numbers"
    return RequestError(
        "out_of_range",
        f"query: expected {allowed}, got {count}",
        field="query",
        value=f"{count} numbers",
        allowed=allowed,
    )


# ---- Bodies that a first reading refuses ----------------------------------------------------

# Members are kept as bytes, so that values that are not needed are never decoded: decoding six
# megabytes of small lists would take a second.
_OF_PARAMS = "params: "
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Name:
    """A member's name, unequal to all others as a key, so that repeated names are kept apart."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def _members(
    body: bytes | msgspec.Raw, names: Collection[str] | None, where: str = ""
) -> dict[str, msgspec.Raw]:
    """Split an object into members by name.

    `names` are the allowed names; None allows any, up to the number of parameters. The first name
    that is not allowed, or is repeated, raises a RequestError. `where` stands before the name in
    its message: "params: ", or "rules.".
    """
    seen: set[str] = set()

    def name(_: type, text: str) -> _Name:
        shortened = text[:MAX_TEXT]
        if names is not None and text not in names:
            raise _unknown(text, names, where)
        if text in seen:
            raise RequestError(
                "duplicate_field",
                f"{where}{shortened}: given more than once",
                field="params" if where == _OF_PARAMS else f"{where}{shortened}",
            )
        if names is None and len(seen) >= MAX_PARAMS:
            raise _too_many(where)
        seen.add(text)
        return _Name(text)

    try:
        found = msgspec.json.decode(body, type=dict[_Name, msgspec.Raw], dec_hook=name)
    except msgspec.ValidationError as error:
        raise error.__cause__ if isinstance(error.__cause__, RequestError) else error from None
    return {key.text: value for key, value in found.items()}


def _read_otherwise(body: bytes, why_not: str, members: dict[str, msgspec.Raw] | None) -> Request:
    """Read a body that is not a plain request: a gateway's object, or one with numbers as text."""
    try:
        members = members or _members(body, (*_FIELDS, _GATEWAY))
    except msgspec.ValidationError:  # not an object
        raise _invalid(why_not, {}) from None
    if members.keys() == {_GATEWAY}:
        return read_parameters(_gateway(members[_GATEWAY]), GatewayRequest)
    given = {
        name: msgspec.json.decode(members[name])
        for name in (*_INTEGERS, *_FLOATS)
        if name in members and bytes(members[name])[:1] == b'"'
    }
    if "query" in members:
        given |= _query(members["query"])
    if not _read_numbers(given):
        raise _invalid(why_not, members)
    numbers = {name: msgspec.Raw(encoded(value)) for name, value in given.items()}
    try:
        request = _REQUEST.decode(encoded({**members, **numbers}))
    except msgspec.ValidationError as error:
        raise _invalid(str(error), members) from None
    _look_into(members)
    return request


def _look_into(members: Mapping[str, msgspec.Raw]) -> None:
    """Refuse repeated parameters and rules, and rules of a wrong form."""
    params, rules = members.get("params"), members.get("rules")
    if params is not None and bytes(params)[:1] == b"{":
        _members(params, None, _OF_PARAMS)
    if rules is not None and bytes(rules)[:1] == b"{":
        _look_into_rules(rules)


def _look_into_rules(value: msgspec.Raw) -> None:
    """Refuse rules with an entry that is repeated or has a wrong type, by its name."""
    if (size := len(bytes(value))) > MAX_RULES:
        allowed = f"at most {MAX_RULES} bytes"
        raise RequestError(
            "out_of_range",
            f"rules: expected {allowed}, got {size}",
            field="rules",
            value=f"{size} bytes",
            allowed=allowed,
        )
    for kind, inner in _members(value, _RULES, "rules.").items():
        start = bytes(inner)[:1]
        if start == b"n":  # null
            continue
        if kind == "where" and start != b'"':
            raise _bad_rules(".where", "an expression, as text", inner)
        if kind == "on_empty" and bytes(inner) not in (b'"stop"', b'"relax"'):
            raise _bad_rules(".on_empty", "stop or relax", inner)
        if kind not in _ENTRIES:
            continue
        if start != b"{":
            raise _bad_rules(f".{kind}", "an object", inner)
        own, words = _ENTRIES[kind]
        for key, entry in _members(inner, None, f"rules.{kind}.").items():
            try:
                msgspec.json.decode(entry, type=own)
            except msgspec.ValidationError:
                raise _bad_rules(f".{kind}.{key[:MAX_TEXT]}", words, entry) from None


def _bad_rules(where: str, allowed: str, value: Any, why: str = "") -> RequestError:
    shown = _shown(value)
    return RequestError(
        "invalid_type",
        f"rules{where}: expected {allowed}, got {short(shown)!r}{why}",
        field=f"rules{where}",
        value=shown,
        allowed=allowed,
    )


def _query(value: msgspec.Raw) -> dict[str, list[float | str]]:
    """Read a query of numbers and texts; empty if it is not one."""
    _query_count(value)
    try:
        return {"query": msgspec.json.decode(value, type=list[float | str])}
    except msgspec.ValidationError:
        return {}


def _query_count(value: msgspec.Raw | None) -> None:
    """Raise a RequestError for a query of too many numbers."""
    if value is not None and (count := bytes(value).count(b",") + 1) > MAX_QUERY:
        raise _long_query(count)


def _ids_count(members: Mapping[str, msgspec.Raw], most: int | None) -> None:
    """Raise a RequestError for a list of more than `most` integers.

    Lists of text are not counted here, since texts may contain commas.
    """
    for name in _IDS:
        content = bytes(members.get(name, b""))
        if most is None or b'"' in content or (count := content.count(b",") + 1) <= most:
            continue
        raise RequestError(
            "out_of_range",
            f"{name}: expected at most {most} ids, got {count}",
            field=name,
            value=count,
            allowed=f"at most {most} ids",
        )


def _gateway(value: msgspec.Raw) -> dict[str, str]:
    """Read the parameters of a body that API Gateway's template made."""
    if (size := len(bytes(value))) > MAX_GATEWAY:
        allowed = f"at most {MAX_GATEWAY} bytes"
        raise RequestError(
            "out_of_range",
            f"gateway: expected {allowed}, got {size}",
            field=_GATEWAY,
            value=f"{size} bytes",
            allowed=allowed,
        )
    try:
        members = _members(value, _FIELDS)
    except msgspec.ValidationError:
        raise RequestError(
            "invalid_type", "gateway: expected an object", field=_GATEWAY, value=_shown(value)
        ) from None
    found: dict[str, str] = {}
    for name, inner in members.items():
        if bytes(inner)[:1] != b'"':
            raise RequestError(
                "invalid_type", f"{name}: expected text in gateway", field=name, value=_shown(inner)
            )
        text = msgspec.json.decode(inner)
        found[name] = unquote_plus(text, errors="strict") if _decodable(text) else text
    return found


def _decodable(text: str) -> bool:
    try:
        unquote_plus(text, errors="strict")
    except UnicodeDecodeError:
        return False
    return True


def _invalid(message: str, members: Mapping[str, Any]) -> RequestError:
    """Make a RequestError from msgspec's message, with the field and the value."""
    path = _PATH.search(message)
    field = path[1] if path is not None and path[1] else None
    if field == "rules" and isinstance(members.get(field), msgspec.Raw):
        _look_into(members)  # it raises a more precise error
    unknown = _UNKNOWN.search(message)
    if unknown is not None:
        return _unknown(unknown[1])
    what = message.split(" - at ")[0]
    if field is None:
        return RequestError("invalid_type", f"the body: {what}")
    value = _shown(members.get(field))
    got = f"; got {short(value)!r}" if field in members else ""
    text = f"{field}: {what[0].lower()}{what[1:]}{got}"
    if field == "rules":
        text = f"rules: expected an object, or a name as text{got}"
    elif field in _TEXTS and isinstance(value, int) and not isinstance(value, bool):
        text = f'{field}: expected text, got the number {short(value)}; send "{short(value)}"'
    return RequestError(
        "invalid_type",
        text,
        field=field,
        value=value,
    )


def _shown(value: Any) -> Any:
    """Return a member's value, or the beginning of its text, for an error."""
    if not isinstance(value, msgspec.Raw):
        return value
    content = bytes(value)
    if len(content) <= 4 * MAX_SHOWN:
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            return msgspec.json.decode(content)
    return content[: 4 * MAX_SHOWN].decode(errors="replace")


def _unknown(name: str, names: Collection[str] = _FIELDS, where: str = "") -> RequestError:
    allowed = [each for each in names if each != _GATEWAY]
    of = "rules" if where else "a request"
    return RequestError(
        "unknown_field",
        f"{where}{name[:MAX_TEXT]}: not a field of {of}: {', '.join(allowed)}",
        field=f"{where}{name[:MAX_TEXT]}",
        allowed=allowed,
    )


def _too_many(where: str) -> RequestError:
    """Make a RequestError for too many parameters, or entries of a kind of rules."""
    if where == _OF_PARAMS:
        return _bad_params(f"more than {MAX_PARAMS}")
    name, allowed = where.removesuffix("."), f"at most {MAX_RULES_ENTRIES} entries"
    return RequestError(
        "out_of_range",
        f"{name}: expected {allowed}, got more",
        field=name,
        value=f"more than {MAX_RULES_ENTRIES}",
        allowed=allowed,
    )


def short(value: Any) -> Any:
    """Shorten a value for an error message.

    Examples
    --------
    >>> short(5), len(short("x" * 10_000)) < 1000
    (5, True)
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) < 2**63 and math.isfinite(value):
        return value
    try:
        text = value if isinstance(value, str) else repr(value)
    except RecursionError:  # the parser allows a few more levels than repr
        text = f"a {type(value).__name__} of too many levels"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
