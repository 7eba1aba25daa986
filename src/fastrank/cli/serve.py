"""`fastrank serve`: serve a model over HTTP, set up by options and by the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from http.client import HTTPConnection, HTTPException
from typing import Any

import click

from fastrank.cli.scores import functions_of
from fastrank.rulesfile import named_rules
from fastrank_serving.secret import Secret
from fastrank_serving.settings import OPTIONS, OTHERS, PREFIX, Option, Settings

__all__ = ["ping", "serve", "serve_command"]

_PING_SECONDS = 2.0  # the time that SageMaker allows

# Variables that Kubernetes sets in every container beside a Service whose name begins with
# fastrank: FASTRANK_SERVICE_PORT_HTTP, FASTRANK_BLUE_PORT_8080_TCP_ADDR; and
# FASTRANK_PORT=tcp://10.0.0.7:8080, which differs from an option by its value.
_SERVICE = re.compile(
    r"FASTRANK(_[A-Z0-9_]+)?_(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)"
    r"|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_PORT, _URL = re.compile(r"FASTRANK(_[A-Z0-9_]+)?_PORT"), re.compile(r"(tcp|udp|sctp)://.*")


def _is_of_service(name: str, value: str) -> bool:
    if _SERVICE.fullmatch(name):
        return True
    return bool(_SERVICE_PORT.fullmatch(name) and _URL.fullmatch(value))


class _Heeds(click.Parameter):
    """A parameter whose errors name the variable that a bad value came from."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        for name in self.envvar or ():
            value = os.environ.get(name)
            if value and not _is_of_service(name, value):
                ctx.meta[f"{__name__}.{self.name}"] = name
                return value
        return None

    def get_error_hint(self, ctx: click.Context | None) -> str:
        variable = None if ctx is None else ctx.meta.get(f"{__name__}.{self.name}")
        return variable or click.Parameter.get_error_hint(self, ctx)


class _Option(_Heeds, click.Option):
    pass


class _Argument(_Heeds, click.Argument):
    pass


def _parameter(option: Option, container: bool) -> click.Parameter:
    """Turn an option into click's form."""
    default = option.default
    if container and option.in_container is not None:
        default = option.in_container
    more: dict[str, Any] = {
        "type": option.takes,
        "envvar": [*option.variables, *filter(None, [option.platform if container else ""])],
        "metavar": option.metavar,
        # This one is eager: whether a model is required depends on it.
        "is_eager": option.field == "watch",
    }
    if default is not None:
        more["default"] = default
    if option.is_argument:
        return _Argument([option.field], required=False, **more | {"metavar": option.name})
    flags = f"--{option.name}"
    words = option.words
    if option.is_repeatable:
        words += " Repeatable; in the variable, separated by commas."
    return _Option(
        [f"{flags}/--no-{option.name}" if option.is_flag else flags, option.field],
        help=words,
        multiple=option.is_repeatable,
        show_envvar=True,
        show_default=_shown(option, default),
        **more,
    )


def _shown(option: Option, default: Any) -> str | bool:
    if option.is_flag:
        return "on" if default else "off"
    return option.shown or default not in (None, ())


def serve_command(container: bool = False) -> click.Command:
    """The command, or with `container` its form that starts a container: SageMaker's defaults."""
    return click.Command(
        "serve",
        params=[_parameter(option, container) for option in OPTIONS],
        callback=_serve,
        help=_serve.__doc__,
    )


def _serve(**given: Any) -> Any:
    """Serve MODEL over HTTP, as a SageMaker container would.

    SIGTERM stops the server once open requests are answered; SIGHUP reloads the model.

    Each option may also come from the environment; the command line takes precedence.

    \b
    Example:
      fastrank serve model/ --log log/ &
      curl "localhost:8080/1/recommended-items/ann?k=5&inference_type=deterministic"
    """
    ignored = _checked(os.environ)
    functions_of(given["score_functions"])  # checked here; each worker imports them again
    named_rules(given["rules"])
    given["secret"] = _secret(given["secret"])
    settings = Settings(**{name: value for name, value in given.items() if value is not None})

    from fastrank_serving.server import run

    return run(settings, ignored)


def _secret(of_file: Secret | None) -> Secret | None:
    """The secret, from a file or the environment; never an option, since all can see arguments."""
    text = os.environ.get("FASTRANK_SECRET")
    if not text:
        return of_file
    if of_file is not None:
        raise ValueError("FASTRANK_SECRET, --secret-file: give only one")
    try:
        return Secret.of_text(text)
    except ValueError as error:
        raise ValueError(f"FASTRANK_SECRET: {error}") from None


def _checked(environ: Mapping[str, str]) -> list[str]:
    """The ignored variables; ValueError for unknown ones, and for a contradiction."""
    ours = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    ignored = sorted(name for name, value in ours.items() if _is_of_service(name, value))
    known = [*OTHERS, *(name for option in OPTIONS for name in option.variables)]
    unknown = sorted(ours.keys() - {*known, *ignored})
    if unknown:
        each = (f"{name} (nearest: {get_close_matches(name, known, 1, 0)[0]})" for name in unknown)
        raise ValueError(f"the environment has unknown settings: {', '.join(each)}")
    for option in OPTIONS:
        given = {ours[name]: name for name in option.variables if ours.get(name)}
        if len(given) > 1:
            both = " and ".join(f"{name}={value}" for value, name in given.items())
            raise ValueError(f"the environment contradicts itself: {both}")
    return ignored


serve = serve_command()


def _ping(host: str, port: int) -> int:
    """Return exit code 0 if the server in this container reports that it is ready, else 1."""
    every = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    asking = HTTPConnection(every.get(host, host), port, timeout=_PING_SECONDS)
    try:
        asking.request("GET", "/ping")
        return 0 if asking.getresponse().status == 200 else 1
    except (OSError, HTTPException):
        return 1
    finally:
        asking.close()


ping = click.Command(
    "ping",
    params=[_parameter(option, True) for option in OPTIONS if option.field in ("host", "port")],
    callback=_ping,
    help=_ping.__doc__,
)
