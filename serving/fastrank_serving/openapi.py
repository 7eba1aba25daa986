"""The OpenAPI document: requests and answers, with the limits of this server and its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

import fastrank as fr
from fastrank.ids import MAX_LENGTH
from fastrank.policies import PARAMETERS, names_of, parameters_of, short_name, words_of_names
from fastrank.wire import LINES, MAX_PARAMS, MAX_RULES, MAX_RULES_ENTRIES, MAX_SCORE
from fastrank_serving.clients import Clients
from fastrank_serving.messages import MAX_TEXT, Answer
from fastrank_serving.rules import Named
from fastrank_serving.settings import MAX_M, Settings

__all__ = ["document"]

_ANNOTATIONS = ("default", "description")
# In a URL, which has less room than a body.
_MAX_SCORE, _MAX_PARAMS, _MAX_PARAM, _MAX_RULES = 1000, 8, 64, 4000
_ERRORS = {
    "400": "Not a valid request: not JSON, an unknown field, or a value of the wrong type.",
    "403": "A field or a policy that clients of this server may not choose.",
    "404": "The model does not know the user.",
    "405": "This address does not take this method.",
    "408": "The body did not arrive in time.",
    "409": "Another request has used this request_id.",
    "413": "The body is too large.",
    "415": "The content type is not supported.",
    "422": "A value is out of range or invalid.",
    "429": "Too many requests: try again.",
    "500": "An internal error.",
    "503": "Not ready, stopping, or too late: try again.",
}


def document(
    settings: Settings,
    catalog: fr.Catalog | None = None,
    policy: fr.Policy | None = None,
    rules: Mapping[str, Named] | None = None,
    *,
    has_arms: bool = False,
) -> dict[str, Any]:
    """Build the document for settings and, once a model serves, its catalog, policy and rules.

    With `has_arms`, requests that name no policy get the policy of an arm.
    """
    _, components = msgspec.json.schema_components(
        (Answer,), ref_template="#/components/schemas/{name}"
    )
    clients = Clients(settings)
    fields = {
        name: schema
        for name, schema in _fields(settings, clients, catalog, policy, rules or {}).items()
        if name == "user_id" or clients.may(name)
    }
    if has_arms and "inference_type" in fields:
        fields["inference_type"]["description"] = f"{_BY_ARM} {_names_words(clients, policy)}"
    components["UserRequest"] = _request(fields, "user_id", "query")
    requests = [{"$ref": "#/components/schemas/UserRequest"}]
    if "query" in fields:
        components["QueryRequest"] = _request(fields, "query", "user_id")
        requests.append({"$ref": "#/components/schemas/QueryRequest"})
    components["Request"] = {
        "description": "Request a ranking for a user that the model knows, or for a vector.",
        "oneOf": requests,
    }
    components["Rules"] = _rules(catalog)
    components["Error"] = _error()

    def json_of(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    answered = {
        "200": {"description": "A ranking.", "content": json_of("Answer")},
        **{
            status: {"description": words, "content": json_of("Error")}
            for status, words in _ERRORS.items()
        },
    }
    parameters: list[dict[str, Any]] = [
        {"name": "user_id", "in": "path", "required": True, "schema": fields.pop("user_id")}
    ]
    in_url = {
        "score": {**fields.get("score", {}), "maxLength": _MAX_SCORE},
        "params": _params(_MAX_PARAMS, _MAX_PARAM),
        "rules": {
            "type": "string",
            "minLength": 1,
            "maxLength": _MAX_RULES,
            "description": f"{_rules_words(clients, rules or {})} Here an object is JSON, as text.",
        },
    }
    fields |= {name: schema for name, schema in in_url.items() if name in fields}
    for name, schema in fields.items():
        if schema["type"] == "object":  # as JSON
            parameters.append(
                {"name": name, "in": "query", "content": {"application/json": {"schema": schema}}}
            )
            continue
        listed = {"style": "form", "explode": False} if schema["type"] == "array" else {}
        parameters.append({"name": name, "in": "query", "schema": schema, **listed})
    parameters = [each for each in parameters if each["name"] != "query"]
    return {
        "openapi": "3.1.0",
        "info": {"title": "fastrank", "version": fr.__version__},
        "paths": {
            "/invocations": {
                "post": {
                    "operationId": "rank",
                    "description": "Rank items. For JSON Lines, the answer has one line per line of"
                    " the request, in order: an Answer or an Error.",
                    "requestBody": {"required": True, "content": json_of("Request") | _lines()},
                    "responses": answered | {"200": _with_lines(answered["200"])},
                }
            },
            "/1/recommended-items/{user_id}": {
                "get": {
                    "operationId": "recommendedItems",
                    "parameters": parameters,
                    "responses": answered,
                }
            },
            "/ping": _told("ping", "Ready.", {"503": "Not ready, or stopping."}),
            "/livez": _told("live", "The process is running."),
            "/version": _told("version", "What is served.", {"503": "Not ready."}, _JSON_OBJECT),
            "/metrics": _told(
                "metrics",
                "Metrics in Prometheus's text format.",
                content={"text/plain": {"schema": {"type": "string"}}},
            ),
            "/execution-parameters": _told(
                "executionParameters", "For batch transform.", content=_JSON_OBJECT
            ),
        },
        "components": {"schemas": components},
    }


_JSON_OBJECT = {"application/json": {"schema": {"type": "object"}}}


def _told(
    name: str,
    words: str,
    others: Mapping[str, str] | None = None,
    content: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """An address without parameters."""
    found = {"description": words} | ({"content": content} if content else {})
    responses = {"200": found} | {
        status: {"description": why} for status, why in (others or {}).items()
    }
    return {"get": {"operationId": name, "responses": responses}}


def _lines() -> dict[str, Any]:
    schema = {"type": "string", "description": "One Request as JSON per line."}
    return {LINES[0]: {"schema": schema}}


def _with_lines(response: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "string", "description": "One Answer or Error as JSON per line."}
    return response | {"content": response["content"] | {LINES[0]: {"schema": schema}}}


def _request(fields: Mapping[str, dict[str, Any]], named: str, other: str) -> dict[str, Any]:
    """Schema of a body, by one of the two ways to say whom the ranking is for."""
    properties = {name: _as_json(schema) for name, schema in fields.items()}
    properties[named] = {key: value for key, value in fields[named].items() if key != "default"}
    properties[other] = {"type": "null"}
    return {
        "type": "object",
        "description": "null means the same as an absent field.",
        "required": [named],
        "properties": properties,
        "additionalProperties": False,
    }


def _fields(
    settings: Settings,
    clients: Clients,
    catalog: fr.Catalog | None,
    policy: fr.Policy | None,
    rules: Mapping[str, Named],
) -> dict[str, dict[str, Any]]:
    """Schemas of a request's fields."""
    query: dict[str, Any] = {"type": "array", "items": _number(-3.4e38, 3.4e38)}
    if catalog is not None:
        query |= {"minItems": catalog.dim, "maxItems": catalog.dim}
    ids = {"type": "array", "items": _item(catalog), "maxItems": settings.max_ids}
    text = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
    return {
        "user_id": text | {"maxLength": MAX_LENGTH},
        "query": query,
        "k": {"type": "integer", "minimum": 1, "maximum": settings.max_k, "default": settings.k},
        "inference_type": {
            "type": "string",
            "enum": names_of(clients.inference_types(policy)),
            "description": f"{_default_policy(policy)} {_names_words(clients, policy)}",
        },
        **{name: _parameter(name) for name in PARAMETERS},
        "exclude": ids,
        "allow": ids,
        "seed": {
            "type": "integer",
            "minimum": 0,
            "maximum": 2**64 - 1,
            "description": "For tests: whoever picks the seed picks the ranking. By default the"
            " server draws it.",
        },
        "request_id": text,
        "score": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_SCORE,
            "description": f"{_score_words(clients)} {_default_score(catalog)}",
        },
        "params": _params(MAX_PARAMS, MAX_TEXT),
        "rules": {
            "anyOf": [
                *([{"type": "string", "enum": list(rules)}] if rules else []),
                *([{"$ref": "#/components/schemas/Rules"}] if clients.may_say("rules") else []),
            ],
            "description": _rules_words(clients, rules),
        },
        "after": ids
        | {
            "uniqueItems": True,
            "description": "Items of the previous pages, first place first. They are not shown"
            " again, and the rules take them into account.",
        },
    }


def _item(catalog: fr.Catalog | None) -> dict[str, Any]:
    is_text = catalog is not None and catalog.item_ids.dtype.kind == "U"
    return {"type": "string" if is_text else ["integer", "string"]}


def _score_words(clients: Clients) -> str:
    """The description of the field `score`."""
    own = "an expression, or " if clients.may_say("score") else ""
    name = "the name of one of the server's score functions"
    return f"How to score items: {own}{name}."


def _rules_words(clients: Clients, rules: Mapping[str, Named]) -> str:
    """The description of the field `rules`."""
    own = " or an object" if clients.may_say("rules") else ""
    named = [
        name + (f" (with the params {', '.join(each.params)})" if each.params else "")
        for name, each in rules.items()
    ]
    have = ", ".join(named) or "none"
    return f"Which items may stand where: the name of rules of the server ({have}){own}."


def _rules(catalog: fr.Catalog | None) -> dict[str, Any]:
    """Schema of the rules that a request may state."""
    text = {"type": "string", "minLength": 1, "maxLength": MAX_SCORE}
    count = {"type": "integer", "minimum": 1, "maximum": 1_000_000}
    of_places = {"pattern": "^([1-9][0-9]{0,5}|1000000)$"}

    def entries(names: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": ["object", "null"],
            "propertyNames": names,
            "additionalProperties": values,
            "maxProperties": MAX_RULES_ENTRIES,
        }

    of_columns = {"minLength": 1}
    row = {"type": "array", "items": count, "minItems": 2, "maxItems": 2}
    decay = {"type": "number", "minimum": 1e-6, "exclusiveMaximum": 1.0}
    return {
        "type": "object",
        "description": f"As in `fastrank.Rules`; at most {MAX_RULES} bytes.",
        "properties": {
            "where": text | {"type": ["string", "null"]},
            "cap": entries(of_columns, count),
            "window": entries(of_columns, row),
            "at_least": entries(of_columns, count),
            "decay": entries(of_columns, decay),
            "pin": entries(of_places, _item(catalog)),
            "pin_where": entries(of_places, text),
            "boost": entries(of_columns, _number(1e-30, 1e30)),
            "boost_score": entries(of_columns, _number(-1e37, 1e37)),
            "on_empty": {"enum": ["stop", "relax", None]},
        },
        "additionalProperties": False,
    }


def _params(most: int, longest: int) -> dict[str, Any]:
    return {
        "type": "object",
        "maxProperties": most,
        "propertyNames": {"maxLength": longest},
        "additionalProperties": {
            "anyOf": [
                {"type": "number"},
                {"type": "boolean"},
                {"type": "string", "maxLength": longest},
            ]
        },
        "description": "Parameters of the score and of the rules, by name.",
    }


_BY_ARM = (
    "By default the policy of the user's arm; a request that names one, or a parameter, has no arm."
)


def _default_policy(policy: fr.Policy | None) -> str:
    if policy is None:
        return "By default the model's own policy."
    params = ", ".join(f"{name} {value:g}" for name, value in policy.params.items())
    return f"By default {policy.inference_type}{', ' if params else ''}{params}."


def _names_words(clients: Clients, policy: fr.Policy | None) -> str:
    """The description of each policy, by the names that requests use."""
    words = words_of_names(clients.inference_types(policy))
    return f"Answers and logs contain the name in brackets, if there is one. {words}."


def _default_score(catalog: fr.Catalog | None) -> str:
    if catalog is None or catalog.score is None:
        return "By default the dot product itself."
    return f"By default {catalog.score.name}."


def _number(low: float, high: float) -> dict[str, Any]:
    return {"type": "number", "minimum": low, "maximum": high}


def _parameter(name: str) -> dict[str, Any]:
    """Schema of a policy's parameter, with the policies that take it."""
    takers = [short_name(each) for each in fr.INFERENCE_TYPES if name in parameters_of(each)]
    row = PARAMETERS[name]
    return {
        "type": "integer" if row.is_integer else "number",
        "minimum": row.low,
        "maximum": min(row.high, MAX_M) if name == "m" else row.high,
        "description": f"{row.meaning}. Taken by {', '.join(takers)}; refused by others.",
    }


def _as_json(schema: dict[str, Any]) -> dict[str, Any]:
    """Schema of a member of a body: a number may come as text, and an unused member as null."""
    own = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
    choices = own.get("anyOf", [own])[:]
    if schema.get("type") in ("integer", "number"):
        choices.append({"type": "string", "description": "The number as text."})
    if "default" not in schema:
        choices.append({"type": "null"})
    return {"anyOf": choices, **{key: schema[key] for key in _ANNOTATIONS if key in schema}}


def _error() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message", "field", "request_id", "retry_after_s"],
                "properties": {
                    "code": {"type": "string", "description": "For programs."},
                    "field": {"type": ["string", "null"]},
                    "value": {"description": "What was sent, shortened."},
                    "allowed": {"description": "What is allowed."},
                    "message": {"type": "string", "description": "For people."},
                    "request_id": {"type": ["string", "null"]},
                    "retry_after_s": {"type": ["integer", "null"]},
                },
            }
        },
    }
