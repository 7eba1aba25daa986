"""What is asked, and how that is put to a container, to its gateway, or to a SageMaker endpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode

__all__ = ["TARGETS", "Ask", "Call", "Container", "Gateway", "SageMaker", "Target"]

TARGETS = ("container", "gateway", "sagemaker")


@dataclass(frozen=True)
class Ask:
    """One kind of request.

    Attributes
    ----------
    parameters : dict
        Besides the user: `inference_type`, `rules` and so on.
    expects : tuple of str
        What an answer that is right has in its JSON, which is not parsed: that costs the client.
    host : str
        Of the server that is asked, if it is not everybody's.
    """

    parameters: Mapping[str, Any]
    expects: tuple[str, ...] = ()
    host: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ask:
        return cls(data["parameters"], tuple(data["expects"]), data["host"])


class Call(NamedTuple):
    """A request as HTTP sends it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None


class Target(Protocol):
    """Something that ranks."""

    def call(self, user_id: str, parameters: Mapping[str, Any]) -> Call:
        """Ask for a user's ranking."""


class Container:
    """POST /invocations, as SageMaker asks a container."""

    def call(self, user_id: str, parameters: Mapping[str, Any]) -> Call:
        body = json.dumps({"user_id": user_id, **parameters}).encode()
        return Call("POST", "/invocations", {"Content-Type": "application/json"}, body)


@dataclass(frozen=True)
class Gateway:
    """GET /1/recommended-items/{user_id}: API Gateway, the local one, or the container itself.

    Parameters
    ----------
    stage : str
        Path before it, if any: ``/prod``.
    """

    stage: str = ""

    def call(self, user_id: str, parameters: Mapping[str, Any]) -> Call:
        path = f"{self.stage}/1/recommended-items/{quote(user_id, safe='')}"
        return Call("GET", f"{path}?{urlencode(parameters)}", {}, None)


class SageMaker:
    """An endpoint, asked as its clients do: signed with the credentials that botocore finds.

    Parameters
    ----------
    endpoint, region : str
    host : str, optional
        Another address than SageMaker's own: a VPC endpoint, say.
    """

    def __init__(self, endpoint: str, region: str, host: str | None = None) -> None:
        try:
            from botocore.auth import SigV4Auth
            from botocore.awsrequest import AWSRequest
            from botocore.session import Session
        except ModuleNotFoundError as error:
            from fastrank.extras import missing_extra

            raise ImportError(f"a SageMaker target: {missing_extra(error) or error}") from None
        self.host = host or f"https://runtime.sagemaker.{region}.amazonaws.com"
        self._path = f"/endpoints/{quote(endpoint, safe='')}/invocations"
        self._region = region
        self._auth, self._request = SigV4Auth, AWSRequest
        self._credentials = Session().get_credentials()
        if self._credentials is None:
            raise ValueError("botocore finds no AWS credentials")

    def call(self, user_id: str, parameters: Mapping[str, Any]) -> Call:
        body = json.dumps({"user_id": user_id, **parameters}).encode()
        headers = {"Content-Type": "application/json"}
        request = self._request("POST", self.host + self._path, headers=headers, data=body)
        # Frozen anew for each call: they expire, and botocore renews them.
        credentials = self._credentials.get_frozen_credentials()
        self._auth(credentials, "sagemaker", self._region).add_auth(request)
        return Call("POST", self._path, dict(request.headers.items()), body)
