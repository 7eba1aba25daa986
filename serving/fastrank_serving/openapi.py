"""The OpenAPI document, made of the types that requests and answers are parsed by."""

from __future__ import annotations

from typing import Any

import msgspec

import fastrank as fr
from fastrank_serving.messages import Answer, Request
from fastrank_serving.settings import Settings

__all__ = ["document"]


def document(settings: Settings) -> dict[str, Any]:
    """For these settings."""
    _, components = msgspec.json.schema_components(
        (Request, Answer), ref_template="#/components/schemas/{name}"
    )
    asked = components["Request"]["properties"]
    asked["k"] |= {"minimum": 1, "maximum": settings.max_k}
    asked["inference_type"] = {"enum": [*fr.INFERENCE_TYPES, None], "default": None}
    components["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string"},
                    "field": {"type": ["string", "null"]},
                    "value": {},
                    "allowed": {},
                    "message": {"type": "string"},
                    "request_id": {"type": ["string", "null"]},
                    "retry_after_s": {"type": ["integer", "null"]},
                },
            }
        },
    }

    def json_of(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    errors = {
        status: {"description": words, "content": json_of("Error")}
        for status, words in {
            "400": "Not a request: not JSON, an unknown field, another type.",
            "404": "The model does not know the user.",
            "413": "The body is too large.",
            "415": "Another content type.",
            "422": "A value that cannot be.",
            "429": "Too many requests: try again.",
            "503": "Not ready, stopping, or too late: try again.",
        }.items()
    }
    answered = {"200": {"description": "A ranking.", "content": json_of("Answer")}, **errors}
    path = {"name": "user_id", "in": "path", "required": True, "schema": {"type": "string"}}
    parameters = [
        {"name": name, "in": "query", "schema": {"type": "string"}}
        for name in Request.__struct_fields__
        if name != "user_id"
    ]
    return {
        "openapi": "3.1.0",
        "info": {"title": "fastrank", "version": fr.__version__},
        "paths": {
            "/invocations": {
                "post": {
                    "operationId": "rank",
                    "requestBody": {"required": True, "content": json_of("Request")},
                    "responses": answered,
                }
            },
            "/1/recommended-items/{user_id}": {
                "get": {
                    "operationId": "recommendedItems",
                    "parameters": [path, *parameters],
                    "responses": answered,
                }
            },
            "/ping": {
                "get": {
                    "operationId": "ping",
                    "responses": {
                        "200": {"description": "Ready."},
                        "503": {"description": "Not ready."},
                    },
                }
            },
        },
        "components": {"schemas": components},
    }
