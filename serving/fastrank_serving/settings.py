"""How a server is set up: by arguments, or by the environment of a SageMaker container."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastrank as fr

if TYPE_CHECKING:
    from fastrank.policies.spec import Stated

__all__ = ["Settings", "policy_named"]

MAX_K = 1000
MAX_M = 100_000  # candidates of a flat tail that a request may ask for
MAX_BODY = 6_291_456  # bytes: SageMaker's own limit
MAX_HELD = 67_108_864
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
DEADLINE = 20.0  # seconds: below the 29 of API Gateway


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a server.

    Attributes
    ----------
    model : Path
        A directory that `fastrank build` or `Model.save` made.
    host, port : str, int
    policy : Policy or Stated, optional
        For requests that name none. By default the model's own, which also says what a `Stated` one
        leaves out.
    fallback : Policy or Stated, optional
        For users that the model does not know: it ranks by the catalog's bias alone, and all
        items alike where there is none. Without it they get a 404. The model's policy says what a
        `Stated` one leaves out.
    score_functions : tuple of str
        ``module:name`` of score functions that requests may name, and the model's own score.
    rules : tuple of str
        ``NAME=FILE``, or ``FILE`` with rules by their names: those that requests may name.
    only_named_rules : bool
        Requests may say no rules of their own.
    workers, threads : int
        Processes, and threads that rank in each.
    queue : int
        So many requests are ranked or wait in a worker; the next one is refused at once.
    share : int
        At most so many waiting requests are ranked in one pass; 1 turns sharing off.
    max_k, max_body, max_ids : int
        Largest k, bytes of a body, and ids of an exclude, allow or after list.
    max_held : int
        Bytes that bodies, and what was read from them, may take together.
    deadline, receive_timeout, drain_delay, drain_timeout : float
        Seconds that a request may take once it is here; that a client has to send its head, and
        again its body; for which a server goes on accepting after SIGTERM; and that it then gives
        to requests in flight.
    keep_answers : int
        So many answers are held for requests that are sent again.
    log_directory : Path, optional
        Of the propensity log.
    admin, explorer, emf : bool
        POST /-/reload from this host; the page at /; CloudWatch metrics on standard output.
    log_level : str
    """

    model: Path
    host: str = "127.0.0.1"
    port: int = 8080
    policy: fr.Policy | Stated | None = None
    fallback: fr.Policy | Stated | None = None
    score_functions: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    only_named_rules: bool = False
    workers: int = 1
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    queue: int = 256
    share: int = 64
    max_k: int = MAX_K
    max_body: int = MAX_BODY
    max_ids: int = 100_000
    max_held: int = MAX_HELD
    deadline: float = DEADLINE
    receive_timeout: float = 30.0
    drain_delay: float = 0.0
    drain_timeout: float = 20.0
    keep_answers: int = 10_000
    log_directory: Path | None = None
    admin: bool = False
    explorer: bool = True
    emf: bool = False
    log_level: str = "info"

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 0, 65_535),
            ("workers", 1, 1024),
            ("threads", 1, 1024),
            ("queue", 1, 1_000_000),
            ("share", 1, 1024),
            ("max_k", 1, 1_000_000),
            ("max_body", 1, 1 << 30),
            ("max_ids", 0, 100_000_000),
            ("max_held", 1, 1 << 40),
            ("keep_answers", 0, 10_000_000),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name}: expected an integer of {low} to {high}, got {value!r}")
        for name in ("deadline", "receive_timeout", "drain_delay", "drain_timeout"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0.0 <= value < 86_400.0:
                raise ValueError(f"{name}: expected seconds, got {value!r}")
        if self.log_level not in LOG_LEVELS:
            raise ValueError(
                f"log_level: expected one of {', '.join(LOG_LEVELS)}; got {self.log_level!r}"
            )

    @classmethod
    def of_container(cls, environ: Mapping[str, str], **changes: Any) -> Settings:
        """Those of a SageMaker container: the model in /opt/ml/model, port 8080 on every address.

        SAGEMAKER_BASE_DIR moves /opt/ml, SAGEMAKER_BIND_TO_PORT the port;
        SAGEMAKER_MODEL_SERVER_WORKERS and _TIMEOUT, SAGEMAKER_CONTAINER_LOG_LEVEL, and
        FASTRANK_LOG_DIR, _EMF, _EXPLORER, _POLICY, _FALLBACK, _ONLY_NAMED_RULES, and _RULES and
        _SCORE_FUNCTIONS, which commas divide, are heeded.
        """
        base = environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml"
        made = cls(model=Path(base, "model"), host="0.0.0.0")  # the contract wants it
        given: dict[str, Any] = {}
        numbers = {
            "SAGEMAKER_BIND_TO_PORT": ("port", int),
            "SAGEMAKER_MODEL_SERVER_WORKERS": ("workers", int),
            "SAGEMAKER_MODEL_SERVER_TIMEOUT": ("deadline", float),
        }
        for name, (own, kind) in numbers.items():
            text = environ.get(name)
            if text:
                try:
                    given[own] = kind(text)
                except ValueError:
                    raise ValueError(f"{name}: not a number: {text!r}") from None
        for name, own in (("FASTRANK_POLICY", "policy"), ("FASTRANK_FALLBACK", "fallback")):
            if environ.get(name):
                given[own] = policy_named(environ[name], name)
        for name, own in (
            ("FASTRANK_SCORE_FUNCTIONS", "score_functions"),
            ("FASTRANK_RULES", "rules"),
        ):
            given[own] = tuple(each for each in environ.get(name, "").split(",") if each)
        only_named = environ.get("FASTRANK_ONLY_NAMED_RULES", "")
        given["only_named_rules"] = only_named not in ("", "0")
        if environ.get("FASTRANK_LOG_DIR"):
            given["log_directory"] = Path(environ["FASTRANK_LOG_DIR"])
        given["emf"] = environ.get("FASTRANK_EMF", "") not in ("", "0")
        # Anyone who reaches the port could list users there.
        given["explorer"] = environ.get("FASTRANK_EXPLORER", "") not in ("", "0")
        levels = {"10": "debug", "20": "info", "30": "warning", "40": "error", "50": "critical"}
        level = environ.get("SAGEMAKER_CONTAINER_LOG_LEVEL", "20")
        given["log_level"] = levels.get(level, level.lower())
        return replace(made, **given, **changes)


def policy_named(text: str, option: str) -> Stated:
    """A policy as ``name:param=value``, the command line's way; `option` is what errors name."""
    from fastrank.policies.spec import parse_stated

    return parse_stated(text, option)
