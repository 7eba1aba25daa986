"""What clients may choose: the fields of a request that they may set, the policies they may name.

Requests in API Gateway's form and direct requests have separate rules: anyone may be behind the
gateway, while direct requests may come from your own service.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

import fastrank as fr
from fastrank.policies import INFERENCE_TYPES, PARAMETERS
from fastrank.policies.spec import Stated, written
from fastrank.wire import GatewayRequest, Request, RulesBody
from fastrank_serving.messages import ProblemError

if TYPE_CHECKING:
    from fastrank_serving.settings import Settings

__all__ = ["FIELDS", "OF_GATEWAY", "OF_POLICIES", "Clients", "Fields", "as_fields"]

Fields: TypeAlias = tuple[str, ...]

FIELDS: Fields = tuple(name for name in Request.__struct_fields__ if name != "user_id")
OF_GATEWAY: Fields = tuple(name for name in FIELDS if name != "request_id")  # set by the gateway
OF_POLICIES: Fields = ("inference_type", *PARAMETERS)
_NAMED = ":named"  # after a field: only names that the server defines
_BY_NAME = ("score", "rules")


def as_fields(words: Iterable[str], known: Sequence[str] = FIELDS) -> Fields:
    """Parse fields, in the order of a request; "all" and "none" stand alone.

    Raises
    ------
    ValueError
        If a word is not a field.

    Examples
    --------
    >>> as_fields(["rules:named", "k"])
    ('k', 'rules:named')
    >>> as_fields(["none"])
    ()
    """
    given = dict.fromkeys(word.strip() for word in words)
    if given.keys() == {"all"}:
        return tuple(known)
    if given.keys() == {"none"}:
        return ()
    order = [
        word for name in known for word in (name, name + _NAMED) if word == name or name in _BY_NAME
    ]
    for word in given:
        if word not in order:
            near = get_close_matches(word, order, 1, 0)[0]
            raise ValueError(
                f"expected fields of a request, or all, or none; got {word!r} (nearest: {near})"
            )
        if word + _NAMED in given:
            raise ValueError(f"{word} and {word}{_NAMED} contradict each other")
    return tuple(word for word in order if word in given)


@dataclass(frozen=True, slots=True)
class _May:
    """What one kind of requests may set.

    Attributes
    ----------
    fields : tuple of str
        As returned by `as_fields`.
    not_these, by_name : tuple of str
        The fields that are refused, and those that take only a name.
    """

    fields: Fields
    not_these: Fields
    by_name: Fields

    @classmethod
    def of(cls, fields: Fields, only_named_rules: bool, always: Fields = ()) -> _May:
        if only_named_rules:
            fields = tuple(f"{each}{_NAMED}" if each == "rules" else each for each in fields)
        names = {each.removesuffix(_NAMED) for each in (*fields, *always)}
        by_name = tuple(each.removesuffix(_NAMED) for each in fields if each.endswith(_NAMED))
        return cls(fields, tuple(name for name in FIELDS if name not in names), by_name)


class Clients:
    """What the clients of a server may choose.

    Parameters
    ----------
    settings : Settings

    Attributes
    ----------
    fields : tuple of str
        Fields that direct requests may set, as `as_fields` returns them.
    gateways : tuple of str or None
        Fields that requests through the gateway may set; None if no gateway is configured, so that
        its form counts as a client's.
    """

    def __init__(self, settings: Settings) -> None:
        named = settings.only_named_rules
        self._may = _May.of(FIELDS if settings.clients_may is None else settings.clients_may, named)
        self._gateways = self._may
        if settings.gateway_may is not None:
            self._gateways = _May.of(settings.gateway_may, named, ("request_id",))
        self.has_gateway = settings.gateway_may is not None
        self._policies = settings.allow_policies
        self._functions = [path.rpartition(":")[2] for path in settings.score_functions]
        self._asks = bool(
            self._may.not_these
            or self._may.by_name
            or self._gateways.not_these
            or self._gateways.by_name
        )

    @property
    def fields(self) -> Fields:
        return self._may.fields

    @property
    def gateways(self) -> Fields | None:
        return self._gateways.fields if self.has_gateway else None

    @property
    def policies(self) -> list[str] | None:
        """Policies that may be named besides the server's own; None for all."""
        return None if self._policies is None else [_stated(each) for each in self._policies]

    def may(self, field: str) -> bool:
        """Whether direct requests may set a field, if only to a name."""
        return field not in self._may.not_these

    def may_say(self, field: str) -> bool:
        """Whether direct requests may set a field to a value that the server has no name for."""
        return self.may(field) and field not in self._may.by_name

    def inference_types(self, own: fr.Policy | None) -> list[str]:
        """Inference types that direct requests may name; `own` is the server's own policy."""
        if not self.may("inference_type"):
            return []
        if self._policies is None:
            return list(INFERENCE_TYPES)
        allowed = {each.inference_type for each in self._policies}
        if own is not None:
            allowed.add(own.inference_type)
        return [name for name in INFERENCE_TYPES if name in allowed]

    def check(self, request: Request, rules: Mapping[str, Any]) -> None:
        """Raise ProblemError, a 403, if a request sets what it may not.

        Parameters
        ----------
        request : Request
        rules : mapping
            The server's named rules.
        """
        if not self._asks:
            return
        may = self._gateways if isinstance(request, GatewayRequest) else self._may
        for name in may.not_these:
            value = getattr(request, name)
            if value is not None and value is not msgspec.UNSET:
                allowed = ["user_id", *may.fields]
                words = f"clients of this server may set only {', '.join(allowed)}"
                raise _forbidden(name, value, allowed, words)
        for name in may.by_name:
            value, has = getattr(request, name), self._functions
            is_own = value is not None and value not in has
            if name == "rules":
                has, is_own = list(rules), isinstance(value, RulesBody)
            if is_own:
                have = ", ".join(has) or "none"
                words = f"expected a name that the server defines ({have}); others are not allowed"
                raise _forbidden(name, value, has, words)

    def check_policy(self, request: Request, policy: fr.Policy, *own: fr.Policy | None) -> None:
        """Raise ProblemError, a 403, if a request names a policy that it may not.

        Parameters
        ----------
        request : Request
        policy : Policy
            The policy of the request, before a user's own temperature.
        *own : Policy or None
            The server's policy, which is the default, and the model's.
        """
        if self._policies is None or policy == own[0]:
            return
        for each in self._policies:
            if each.inference_type != policy.inference_type:
                continue
            if not each.params or policy == each.completed(*own):
                return
        field = next(name for name in OF_POLICIES if getattr(request, name) is not None)
        words = f"this server allows {', '.join(self.policies or ())}; got {written(policy)}"
        raise _forbidden(field, getattr(request, field), self.policies or (), words)


def _stated(policy: Stated) -> str:
    """The stated part of a policy, as one writes it."""
    params = ",".join(f"{name}={value:g}" for name, value in policy.params.items())
    return f"{policy.inference_type}:{params}" if params else policy.inference_type


def _forbidden(field: str, value: Any, allowed: Sequence[str], words: str) -> ProblemError:
    shown = value if isinstance(value, str | int | float) else type(value).__name__
    if isinstance(value, list):
        shown = f"{len(value)} values"
    return ProblemError(
        403, "not_allowed", f"{field}: {words}", field=field, value=shown, allowed=list(allowed)
    )
