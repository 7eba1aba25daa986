"""The explorer: a page that shows the rankings of every inference type for a user.

The page gets rankings from /invocations, as any client does, and always chooses the seed: the log
marks such rows, and evaluations leave them out. This module serves what else the page needs: which
users there are, and the titles of items.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

import fastrank as fr
from fastrank.ids import MAX_LENGTH, id_from_text, integer
from fastrank.policies import NAMES, parameters_of
from fastrank_serving.clients import FIELDS
from fastrank_serving.messages import (
    MAX_TEXT,
    ProblemError,
    out_of_range,
    refuse_repeated,
)
from fastrank_serving.service import Loaded, Service

__all__ = ["MAX_TITLES", "MAX_USERS", "routes"]

MAX_USERS = 100  # in one list of suggestions
MAX_TITLES = 100  # in one request

_USERS = 20
_STATIC = Path(__file__).with_name("static")
_FILES = {
    "/": ("index.html", "text/html"),
    "/explorer/explorer.css": ("explorer.css", "text/css"),
    "/explorer/explorer.js": ("explorer.js", "text/javascript"),
    "/explorer/icon.svg": ("icon.svg", "image/svg+xml"),
}
# The maker of the catalog chose its titles and ids freely: none of them can become code, and the
# page talks only to this server.
_POLICY = "; ".join(
    [
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'"),
        *("connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
        *("require-trusted-types-for 'script'", "trusted-types 'none'"),
    ]
)
_PAGE_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}

Refuse = Callable[[ProblemError], Response]


def routes(service: Service, refused: Refuse) -> list[Route]:
    """Routes of the page and of its requests; none if the explorer is off.

    Parameters
    ----------
    service : Service
    refused : callable
        Makes the answer for a problem.
    """
    if not service.settings.explorer:
        return []

    def asked(path: str, answer: Callable[[HttpRequest], Any]) -> Route:
        async def endpoint(request: HttpRequest) -> Response:
            try:
                body = msgspec.json.encode(answer(request))
            except ProblemError as problem:
                return refused(problem)
            headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
            return Response(body, media_type="application/json", headers=headers)

        return Route(path, endpoint)

    def about(request: HttpRequest) -> dict[str, Any]:
        _check_names(request, ())
        settings, loaded = service.settings, service.loaded
        return {
            "fastrank": fr.__version__,
            "model_version": loaded.version,
            "in_force": loaded.in_force.described(),
            "n_items": len(loaded.catalog),
            "n_users": 0 if loaded.model is None else len(loaded.model.user_ids),
            "has_titles": loaded.model is not None and loaded.model.has_titles,
            "max_k": settings.max_k,
            "max_titles": MAX_TITLES,
            "fallback": settings.fallback is not None,
            "params": {
                **({} if loaded.models_policy is None else loaded.models_policy.params),
                **loaded.policy.params,
            },
            "score": None if loaded.catalog.score is None else loaded.catalog.score._asdict(),
            "columns": {} if loaded.catalog.features is None else loaded.catalog.features.columns,
            "rules": [{"name": name, "params": each.params} for name, each in loaded.rules.items()],
            "inference_types": [
                {
                    "name": name,
                    "params": list(parameters_of(name)),
                    "words": NAMES[name].words,
                }
                for name in service.clients.inference_types(loaded.policy)
            ],
            "may": [name for name in FIELDS if service.clients.may(name)],
        }

    def users(request: HttpRequest) -> dict[str, Any]:
        _check_names(request, ("prefix", "limit"))
        prefix = request.query_params.get("prefix", "")
        if len(prefix) > MAX_LENGTH:
            raise out_of_range("prefix", f"{len(prefix)} characters", f"at most {MAX_LENGTH}")
        limit = _limit(request.query_params.get("limit", str(_USERS)))
        model = service.loaded.model
        # One more than requested shows whether there are more.
        found = [] if model is None else model.users_starting_with(prefix, limit + 1)
        names = [str(user) for user in found[:limit]]
        return {"users": [name for name in names if _utf8(name)], "more": len(found) > limit}

    def titles(request: HttpRequest) -> dict[str, Any]:
        _check_names(request, ("id",), repeated=True)
        ids = request.query_params.getlist("id")
        if len(ids) > MAX_TITLES:
            raise out_of_range("id", f"{len(ids)} of them", f"at most {MAX_TITLES}")
        return {"titles": _titles(service.loaded, ids)}

    return [
        *(_static(path, *file) for path, file in _FILES.items()),
        asked("/explorer/about", about),
        asked("/explorer/users", users),
        asked("/explorer/titles", titles),
    ]


def _static(path: str, name: str, media_type: str) -> Route:
    body = (_STATIC / name).read_bytes()

    async def page(_: HttpRequest) -> Response:
        return Response(body, media_type=media_type, headers=_PAGE_HEADERS)

    return Route(path, page)


def _titles(loaded: Loaded, ids: list[str]) -> list[str]:
    """Titles of items, given their ids as text; '' if there is no such item, or no title."""
    if loaded.model is None:
        return [""] * len(ids)
    known = {text: id_from_text(text, loaded.catalog.item_ids) for text in ids}
    wanted: list[Any] = [item for item in known.values() if item is not None]
    found: dict[Any, str] = dict(zip(wanted, loaded.model.titles(wanted), strict=True))
    return [found.get(known[text], "") for text in ids]


def _utf8(text: str) -> bool:
    """Whether a text can be encoded, and so requested."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_names(request: HttpRequest, names: tuple[str, ...], repeated: bool = False) -> None:
    given = request.query_params
    for name in given:
        if name not in names:
            raise ProblemError(
                400,
                "unknown_field",
                f"{name[:MAX_TEXT]}: this address has no such parameter",
                field=name[:MAX_TEXT],
                allowed=list(names),
            )
    if not repeated:
        refuse_repeated(given.multi_items())


def _limit(text: str) -> int:
    number = integer(text)
    if number is None or not 1 <= number <= MAX_USERS:
        raise out_of_range("limit", text, f"1 to {MAX_USERS}")
    return number
