"""How a server is set up: one table of options, with a description of each.

A field of `Settings` is an option. The command line (`fastrank.cli.serve`), the environment, the
checks, and the table of docs/reference/settings.md are derived from these fields only.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fastrank as fr
from fastrank.cores import usable_cores
from fastrank.files import is_data
from fastrank.ids import split_ids
from fastrank.places import is_url
from fastrank.policies.spec import SYNTAX, parse_stated
from fastrank.store import MANIFEST
from fastrank_serving.arms import ALSO_SYNTAX, ARM_SYNTAX, Regime
from fastrank_serving.clients import FIELDS, OF_GATEWAY, OF_POLICIES, Fields, as_fields
from fastrank_serving.secret import Secret, is_secret

if TYPE_CHECKING:
    from fastrank.policies.spec import Stated

__all__ = ["MAX_BODY", "MAX_M", "OPTIONS", "OTHERS", "PREFIX", "Option", "Settings"]

MAX_M = 100_000  # candidates of a flat tail that a request may ask for
_MOST = 1 << 50  # bytes; larger than any disk
MAX_BODY = 6_291_456  # bytes: the limit of SageMaker
PREFIX = "FASTRANK_"  # of variables
_DEFAULT = click.core.ParameterSource.DEFAULT

# Variables that are not options.
OTHERS = {
    "FASTRANK_CACHE_DIR": "Directory of compiled score functions.",
    "FASTRANK_ISA": "The build of the native core, instead of the best for this CPU.",
    "FASTRANK_SECRET": "The secret itself, instead of `--secret-file`; never an argument.",
    "FASTRANK_TRACEBACK": "If set, bad input to a command ends in a traceback.",
}


_NEXT_POLICY = re.compile(r",(?![^,:=]*=)")


# ---- Types of options ------------------------------------------------------------------------


class _Seconds(click.FloatRange):
    name = "seconds"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        found: float = super().convert(value, param, ctx)
        if math.isnan(found):  # which passes every range
            self.fail(f"expected a number of seconds; got {value!r}", param, ctx)
        return found


class _Policy(click.types.StringParamType):
    name = "policy"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        named = "policy" if param is None else param.get_error_hint(ctx).strip("'")
        if not isinstance(value, str):
            return value
        return parse_stated(value, named, takes_overlap=True)


class _Fields(click.types.StringParamType):
    """Fields of a request, separated by commas."""

    name = "fields"

    def __init__(self, known: Fields) -> None:
        self.known = known

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return as_fields(value.split(","), self.known) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class _Policies(click.types.StringParamType):
    """Policies separated by commas; a part that starts with ``name=`` belongs to the one before."""

    name = "policies"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        named = "allow_policies" if param is None else param.get_error_hint(ctx).strip("'")
        return tuple(parse_stated(each, named) for each in _NEXT_POLICY.split(value))


class _SecretFile(click.Path):
    """A path whose content is read once and kept, so that all workers have the same content."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, Secret):
            return value
        if not os.path.lexists(value) and is_secret(value):  # an error must not repeat it
            self.fail("expected the name of a file, not the secret itself.", param, ctx)
        try:
            return Secret.read(os.fsdecode(super().convert(value, param, ctx)))
        except (OSError, ValueError) as error:
            self.fail(str(error), param, ctx)


class _Texts(click.types.StringParamType):
    """Repeatable texts; in a variable they are separated by commas."""

    def split_envvar_value(self, rv: str) -> list[str]:
        try:
            return split_ids("a list", rv)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None


class _Level(click.Choice[str]):
    """A level by its name, or by its number in Python's logging and in SageMaker."""

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        numbers = {str(10 * j): name for j, name in enumerate(self.choices, 1)}
        return super().convert(numbers.get(str(value), value), param, ctx)


def _folder() -> click.Path:
    return click.Path(file_okay=False, path_type=Path)


class _Model(click.Path):
    """A directory that exists; the container's own may be missing if one is watched."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if ctx is not None and ctx.get_parameter_source(param.name) is _DEFAULT:
            is_watched = isinstance(ctx.params.get("watch"), str | Path)
            if is_watched and not Path(value, MANIFEST).exists():
                return None
        return super().convert(value, param, ctx)


class _Place(click.Path):
    """A directory, or a URL that fsspec opens."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if is_url(value) else super().convert(value, param, ctx)


class _Version(click.types.StringParamType):
    """The name of a version: a directory in another one."""

    name = "version"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not value or "/" in value or not is_data(value):
            self.fail(f"expected the name of a version; got {value!r}", param, ctx)
        return value


# ---- The table ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option of a server.

    Attributes
    ----------
    field : str
        The field of `Settings`.
    name : str
        The name on the command line; in capitals for an argument.
    variables : tuple of str
        Environment variables: ``FASTRANK_<OPTION>``, and for some options an older name.
    platform : str
        A variable that SageMaker sets; read in a container only.
    takes : click.ParamType
        The type; an option that takes texts is repeatable.
    words : str
        The description.
    default, in_container
        The default elsewhere, and in a container; None if there is none, or if it is determined at
        start.
    shown, shown_in_container : str
        Descriptions of defaults that need one.
    metavar : str, optional
    """

    field: str = ""
    name: str = ""
    variables: tuple[str, ...] = ()
    platform: str = ""
    takes: Any
    words: str
    default: Any = None
    in_container: Any = None
    shown: str = ""
    shown_in_container: str = ""
    metavar: str | None = None

    @property
    def is_argument(self) -> bool:
        return self.name.isupper()

    @property
    def is_flag(self) -> bool:
        return self.takes is click.BOOL

    @property
    def is_repeatable(self) -> bool:
        return isinstance(self.takes, _Texts)

    def check(self, value: Any) -> None:
        """Raise ValueError, naming the setting, for a value that the option would refuse."""
        takes = self.takes
        try:
            if isinstance(takes, _Fields) and value is not None and value != ():
                takes.convert(",".join(value), None, None)
            if isinstance(takes, click.Choice):
                if value not in takes.choices:  # click would also accept other cases
                    takes.fail(takes.get_invalid_choice_message(value, None))
            elif isinstance(takes, click.IntRange | _Seconds):
                number = int if isinstance(takes, click.IntRange) else int | float
                if isinstance(value, bool) or not isinstance(value, number):
                    takes.fail(f"expected a number, got {value!r}")
                takes.convert(value, None, None)
        except click.BadParameter as error:
            raise ValueError(f"{self.field}: {error.message}") from None


def _said(takes: Any, words: str, **more: Any) -> dict[str, Any]:
    """Metadata of an option: everything except its default elsewhere."""
    return {"takes": takes, "words": words, **more}


def _model_of_container() -> Path:
    return Path(os.environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml", "model")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a server. Each is an option, described by its words.

    Raises
    ------
    ValueError
        If a setting has a value that its option would refuse, or two settings contradict each
        other; the message names them.

    Examples
    --------
    >>> Settings(Path("model"), workers=2).port
    8080
    >>> Settings(Path("model"), port=70_000)
    Traceback (most recent call last):
    ValueError: port: 70000 is not in the range 0<=x<=65535.
    """

    model: Path | None = field(
        default=None,
        metadata=_said(
            _Model(exists=True, file_okay=False, path_type=Path),
            "The directory that `fastrank build` or `Model.save` made. With --watch it is optional,"
            " and is served until a version arrives.",
            name="MODEL",
            in_container=_model_of_container,
            shown_in_container="`/opt/ml/model`; `SAGEMAKER_BASE_DIR` moves `/opt/ml`",
        ),
    )
    host: str = field(
        default="127.0.0.1",  # in a container, SageMaker needs all addresses
        metadata=_said(click.STRING, "Address to listen on.", in_container="0.0.0.0"),
    )
    port: int = field(
        default=8080,
        metadata=_said(
            click.IntRange(0, 65_535),
            "Port; 0 picks a free one.",
            platform="SAGEMAKER_BIND_TO_PORT",
        ),
    )
    policy: fr.Policy | Stated | None = field(
        default=None,
        metadata=_said(
            _Policy(),
            "The policy for requests that name none. The model's own policy fills in what it leaves"
            " out, such as the temperature.",
            metavar=SYNTAX,
            shown="the model's own",
        ),
    )
    fallback: fr.Policy | Stated | None = field(
        default=None,
        metadata=_said(
            _Policy(),
            "Ranks users that the model does not know, by the catalog's bias alone or by its score"
            " for a dot product of 0.",
            metavar=SYNTAX,
            shown="a 404",
        ),
    )
    experiment: str | None = field(
        default=None,
        metadata=_said(
            click.STRING,
            "Name of the experiment. Its arms share the users, and rank requests that name no"
            " policy.",
            metavar="NAME",
            shown="none",
        ),
    )
    arms: tuple[str, ...] = field(
        default=(),
        metadata=_said(
            _Texts(),
            "An arm of the experiment: its policy and its share. All shares sum to 1.",
            name="arm",
            metavar=ARM_SYNTAX,
            shown="none",
        ),
    )
    also: tuple[str, ...] = field(
        default=(),
        metadata=_said(
            _Texts(),
            "A policy whose log-propensities of what is shown are also answered and logged, so that"
            " it can be evaluated without the model. Together these policies cost about one and a"
            " half extra passes.",
            metavar=ALSO_SYNTAX,
            shown="none",
        ),
    )
    control: str | None = field(
        default=None,
        metadata=_said(
            click.STRING,
            "The control file, a path or a URL that fsspec opens (s3://...). It sets arms and their"
            " shares, or makes all rankings deterministic. The server follows its changes.",
            metavar="FILE",
            shown="none",
        ),
    )
    control_every: float = field(
        default=10.0,
        metadata=_said(  # jitter, the read and the change together stay below 30
            _Seconds(0, 20, min_open=True),
            "Seconds between two reads of the control file, plus or minus a fifth.",
        ),
    )
    k: int = field(
        default=10,
        metadata=_said(
            click.IntRange(1, 1_000_000), "Places of a ranking, for requests that name no k."
        ),
    )
    score_functions: tuple[str, ...] = field(
        default=(),
        metadata=_said(
            _Texts(),
            "A score function that requests and the model's own score may name. Its module is"
            " imported, possibly from the current directory.",
            shown="none",
            name="score-function",
            variables=("FASTRANK_SCORE_FUNCTIONS",),
            metavar="MODULE:NAME",
        ),
    )
    rules: tuple[str, ...] = field(
        default=(),
        metadata=_said(
            _Texts(),
            "Rules that requests may name, from a JSON file with the keys of fastrank.Rules; or"
            " FILE alone, an object with several rules by name. Read again at each reload.",
            shown="none",
            metavar="NAME=FILE",
        ),
    )
    only_named_rules: bool = field(
        default=False,
        metadata=_said(
            click.BOOL,
            "Requests may not state rules of their own, only name the server's: like rules:named,"
            " for all clients.",
        ),
    )
    clients_may: Fields | None = field(
        default=None,
        metadata=_said(
            _Fields(FIELDS),
            "Fields of a request that clients may set besides user_id, separated by commas; or"
            " none, or all. score:named and rules:named allow only names that the server defines."
            " Other fields get a 403.",
            shown="all",
            metavar="FIELD,...",
        ),
    )
    gateway_may: Fields | None = field(
        default=None,
        metadata=_said(
            _Fields(OF_GATEWAY),
            "There is a gateway, and these fields may be set through it. The gateway sets"
            " request_id itself.",
            shown="no gateway: requests in its form count as a client's",
            metavar="FIELD,...",
        ),
    )
    allow_policies: tuple[Stated, ...] | None = field(
        default=None,
        metadata=_said(
            _Policies(),
            "Policies that requests may name, separated by commas: with the parameters stated, or"
            " with any if none are stated.",
            shown="any",
            metavar="POLICY[:PARAM=VALUE,...],...",
        ),
    )
    workers: int = field(
        default=1,
        metadata=_said(
            click.IntRange(1, 1024), "Processes.", platform="SAGEMAKER_MODEL_SERVER_WORKERS"
        ),
    )
    threads: int = field(
        default_factory=usable_cores,
        metadata=_said(
            click.IntRange(1, 1024),
            "Threads that rank, in each process.",
            shown="the cores, by affinity and by the cgroup's limit",
        ),
    )
    queue: int = field(
        default=256,
        metadata=_said(
            click.IntRange(1, 1_000_000),
            "How many requests may be served or wait in a process; the next one gets a 429.",
        ),
    )
    share: int = field(
        default=64,
        metadata=_said(
            click.IntRange(1, 1024),
            "How many waiting requests are ranked in one pass; 1 ranks each by itself.",
        ),
    )
    max_k: int = field(default=1000, metadata=_said(click.IntRange(1, 1_000_000), "Largest k."))
    max_ids: int = field(
        default=100_000,
        metadata=_said(
            click.IntRange(0, 100_000_000), "Most ids of an exclude, allow or after list."
        ),
    )
    max_body: int = field(
        default=MAX_BODY, metadata=_said(click.IntRange(1, 1 << 30), "Most bytes of a body.")
    )
    max_held: int = field(
        default=67_108_864,
        metadata=_said(
            click.IntRange(1, 1 << 40),
            "Most bytes that requests hold together, in each process: bodies, and ids read from"
            " them. A request beyond that gets a 503.",
        ),
    )
    keep_answers: int = field(
        default=10_000,
        metadata=_said(
            click.IntRange(0, 10_000_000),
            "How many answers are kept for requests that are sent again.",
        ),
    )
    deadline: float = field(
        default=20.0,  # below API Gateway's 29
        metadata=_said(
            _Seconds(0, 86_400, min_open=True),
            "Seconds to answer a request, once it has arrived.",
            platform="SAGEMAKER_MODEL_SERVER_TIMEOUT",
        ),
    )
    receive_timeout: float = field(
        default=30.0,
        metadata=_said(
            _Seconds(0, 86_400, min_open=True),
            "Seconds for a client to send a request's head, and again for its body.",
        ),
    )
    keep_alive: int = field(
        default=75,
        metadata=_said(
            click.IntRange(1, 86_400),
            "Seconds that a connection may be idle; longer than the proxy or balancer in front"
            " keeps it.",
        ),
    )
    drain_delay: float = field(
        default=0.0,
        metadata=_said(
            _Seconds(0, 86_400),
            "Seconds that requests are still accepted after SIGTERM, while /ping says 503.",
            in_container=5.0,  # with the drain, and a second for the log, below SageMaker's 30
        ),
    )
    drain_timeout: float = field(
        default=20.0,
        metadata=_said(_Seconds(1, 86_400), "Seconds after that for open requests to end."),
    )
    watch: Path | str | None = field(
        default=None,
        metadata=_said(
            _Place(file_okay=False, path_type=Path),
            "Where models arrive, each in its own directory; the last one by name is served.",
            metavar="DIRECTORY|s3://BUCKET/PREFIX",
            shown="none",
        ),
    )
    pin: str | None = field(
        default=None,
        metadata=_said(
            _Version(),
            "The watched version to serve, instead of the last one.",
            shown="the content of the file PIN beside the versions",
        ),
    )
    watch_every: float = field(
        default=30.0,
        metadata=_said(
            _Seconds(0, 86_400, min_open=True),
            "Most seconds between two looks at the watched place; at least half as many.",
        ),
    )
    watch_copies: Path | None = field(
        default=None,
        metadata=_said(
            _folder(),
            "Directory for copies of watched versions, used by this server only.",
            shown="a temporary one",
        ),
    )
    watch_bytes: int = field(
        default=_MOST,
        metadata=_said(
            click.IntRange(1, _MOST),
            "Most bytes of these copies: of the version that serves and of the next one.",
            shown="limited by the disk",
        ),
    )
    log_directory: Path | str | None = field(
        default=None,
        metadata=_said(
            _Place(file_okay=False, path_type=Path),
            "Directory of the propensity log, or the URL to upload it to.",
            name="log",
            variables=("FASTRANK_LOG_DIR",),
            metavar="DIRECTORY|s3://BUCKET/PREFIX",
            shown="no log",
        ),
    )
    access_log: str = field(
        default="off",
        metadata=_said(
            click.Choice(["off", "text", "json"], case_sensitive=False),
            "Writes a line to standard output for each answer: text or json. off: only 4xx and 5xx,"
            " at most 10 a second and 100 at once in each process, on standard error.",
        ),
    )
    log_spool: Path | None = field(
        default=None,
        metadata=_said(
            _folder(),
            "Directory where the log waits until it is uploaded, used by this server only.",
            shown="a temporary one",
        ),
    )
    log_every: float = field(
        default=60.0,
        metadata=_said(
            _Seconds(0, 86_400, min_open=True),
            "Seconds until rows to be uploaded are sealed into a file and sent.",
        ),
    )
    log_backlog: int = field(
        default=1 << 30,
        metadata=_said(
            click.IntRange(1, _MOST),
            "Most bytes of log that are kept while uploads fail; then the oldest are dropped.",
        ),
    )
    admin_socket: Path | None = field(
        default=None,
        metadata=_said(
            click.Path(dir_okay=False, path_type=Path),
            "Unix socket for POST /-/reload. Only root and the user who started the server may use"
            " it.",
            shown="none",
        ),
    )
    secret: Secret | None = field(
        default=None,
        metadata=_said(
            _SecretFile(exists=True, dir_okay=False),
            "File with a secret of at least 128 bits, the same for all replicas. Seeds are derived"
            " from it.",
            name="secret-file",
            shown="none: seeds are drawn",
        ),
    )
    explorer: bool = field(
        default=True,
        metadata=_said(
            click.BOOL,
            "Serves the explorer page at /, which lists users to everyone who reaches the port.",
            in_container=False,
        ),
    )
    emf: bool = field(
        default=False, metadata=_said(click.BOOL, "CloudWatch's metrics on standard output.")
    )
    log_level: str = field(
        default="info",
        metadata=_said(
            _Level(["debug", "info", "warning", "error", "critical"], case_sensitive=False),
            "The least severe level that is logged: a name, or 10 to 50 for debug to critical.",
            platform="SAGEMAKER_CONTAINER_LOG_LEVEL",
        ),
    )

    def __post_init__(self) -> None:
        for option in OPTIONS:
            option.check(getattr(self, option.field))
        self._check_experiment()
        if self.allow_policies is not None and self.clients_may is not None:
            may = {*self.clients_may, *(self.gateway_may or ())}
            if may.isdisjoint(OF_POLICIES):
                raise ValueError(
                    "allow_policies: nobody may name a policy: clients_may and gateway_may have"
                    f" none of {', '.join(OF_POLICIES)}"
                )
        if self.model is None and self.watch is None:
            raise ValueError("model: give MODEL, or --watch")
        for name in ("pin", "watch_copies"):
            if getattr(self, name) is not None and self.watch is None:
                raise ValueError(f"{name}: {getattr(self, name)} needs watch")
        if self.log_spool is not None and not self.is_log_uploaded:
            raise ValueError(
                f"log_spool: {self.log_spool} needs a log that is uploaded, and log is"
                f" {self.log_directory or 'not given'}"
            )
        if self.k > self.max_k:
            raise ValueError(f"k: expected at most max_k, {self.max_k}; got {self.k}")
        if self.max_held < self.max_body:
            raise ValueError(
                f"max_held: expected at least max_body, {self.max_body}, or no body of that size"
                f" could be read; got {self.max_held}"
            )

    def _check_experiment(self) -> None:
        if self.arms and self.experiment is None:
            raise ValueError("arm: there is no experiment: name one by --experiment")
        if self.experiment is not None and not self.arms and self.control is None:
            raise ValueError("experiment: it has no arms: state them by --arm, or --control")
        if self.arms and self.policy is not None:
            raise ValueError(
                "policy: contradicts arm: requests that name no policy get an arm's policy"
            )
        if self.control == "":
            raise ValueError("control: expected a path or a URL, got ''")
        _ = self.regime

    @property
    def regime(self) -> Regime:
        """The policies in force unless a control file says otherwise."""
        return Regime.stated(self.experiment, self.arms, self.also, self.secret)

    @property
    def is_log_uploaded(self) -> bool:
        return is_url(self.log_directory)

    @property
    def copy(self) -> Path | None:
        """The link to the copy of the version in force; None if none is watched."""
        return None if self.watch_copies is None else self.watch_copies / "current"

    @property
    def directory(self) -> Path | None:
        """The directory of the model to serve; None if it has not arrived."""
        return self.copy if self.copy is not None and self.copy.exists() else self.model


def _table() -> tuple[Option, ...]:
    found = []
    for each in fields(Settings):
        said = dict(each.metadata)
        name = said.pop("name", each.name.replace("_", "-"))
        own = PREFIX + name.upper().replace("-", "_")
        default = None if each.default is MISSING else each.default
        variables = (own, *said.pop("variables", ()))
        found.append(
            Option(field=each.name, name=name, variables=variables, default=default, **said)
        )
    return tuple(found)


OPTIONS = _table()
