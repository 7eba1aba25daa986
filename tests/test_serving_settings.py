"""Options of a server: the command line, the environment, the docs, all of one table."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest
from click.testing import CliRunner, Result
from environment import OWN
from served import make_model, with_app

import fastrank as fr
from fastrank.cli.app import Commands
from fastrank.cli.serve import serve_command
from fastrank.policies.spec import Stated
from fastrank_serving import server
from fastrank_serving.secret import Secret
from fastrank_serving.settings import OPTIONS, OTHERS, Option, Settings

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"
SECRET = "00112233445566778899aabbccddeeff"
BY_FIELD = {option.field: option for option in OPTIONS}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("settings") / "model"
    make_model(directory)
    return directory


class Group(Commands):
    table: ClassVar[Mapping[str, str]] = {"serve": ""}
    container = False

    def load(self, name: str) -> click.Command:
        return serve_command(self.container)


class Starter:
    """Calls the command; what would be served is kept."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.started: list[tuple[Settings, list[str]]] = []

    def run(
        self, *arguments: object, container: bool = False, environ: Mapping[str, str] | None = None
    ) -> Result:
        group = Group("fastrank")
        group.container = container
        words = ["serve", *map(str, arguments)]
        return CliRunner(env={**dict.fromkeys(OWN), **(environ or {})}).invoke(group, words)

    def settings(self, *arguments: object, **options: Any) -> Settings:
        """Those that are served with."""
        result = self.run(self.model, *arguments, **options)
        assert (result.exit_code, result.output) == (0, "")
        return self.started[-1][0]

    def refused(self, *arguments: object, **options: Any) -> str:
        """The one line of a refusal."""
        before = len(self.started)
        result = self.run(self.model, *arguments, **options)
        assert result.exit_code == 2, result.output
        assert result.stderr.count("\n") == 1, result.stderr
        assert len(self.started) == before
        return result.stderr


@pytest.fixture
def starter(model: Path, monkeypatch: pytest.MonkeyPatch) -> Starter:
    found = Starter(model)

    def run(settings: Settings, ignored: list[str]) -> int:
        found.started.append((settings, ignored))
        return 0

    monkeypatch.setattr(server, "run", run)
    return found


def examples(folder: Path) -> dict[str, tuple[str, Any]]:
    """A value of each option as text, another one than its default, and what is made of it."""
    rules = folder / "one.json"
    rules.write_text("{}")
    secret = folder / "secret"
    secret.write_text(f"{SECRET}\n")
    return {
        "host": ("::1", "::1"),
        "port": ("0", 0),
        "policy": (
            "plackett_luce:temperature=0.5",
            Stated("stochastic_gumbel_softmax_trick", {"temperature": 0.5}),
        ),
        "fallback": ("uniform", Stated("uniform", {})),
        "experiment": ("warmer", "warmer"),
        "arms": ("all=uniform@1", ("all=uniform@1",)),
        "also": ("flat=uniform", ("flat=uniform",)),
        "control": ("arms.json", "arms.json"),
        "control_every": ("5", 5.0),
        "k": ("7", 7),
        "score_functions": ("", ()),
        "rules": (f"home={rules}", (f"home={rules}",)),
        "only_named_rules": ("true", True),
        "clients_may": ("seed, k", ("k", "seed")),
        "gateway_may": ("none", ()),
        "allow_policies": (
            "uniform,plackett_luce:temperature=0.5,head=2",
            (
                Stated("uniform", {}),
                Stated("stochastic_gumbel_softmax_trick", {"temperature": 0.5, "head": 2.0}),
            ),
        ),
        "workers": ("3", 3),
        "threads": ("5", 5),
        "queue": ("9", 9),
        "share": ("2", 2),
        "max_k": ("20", 20),
        "max_ids": ("0", 0),
        "max_body": ("1000", 1000),
        "max_held": ("9000000", 9_000_000),
        "keep_answers": ("0", 0),
        "deadline": ("0.5", 0.5),
        "receive_timeout": ("1.5", 1.5),
        "keep_alive": ("6", 6),
        "drain_delay": ("2.5", 2.5),
        "drain_timeout": ("3", 3.0),
        "watch": ("s3://bucket/models", "s3://bucket/models"),
        "pin": ("v1", "v1"),
        "watch_every": ("5", 5.0),
        "watch_copies": (str(folder / "copies"), folder / "copies"),
        "watch_bytes": ("1000", 1000),
        "log_directory": (str(folder / "log"), folder / "log"),
        "access_log": ("JSON", "json"),
        "log_spool": (str(folder / "spool"), folder / "spool"),
        "log_every": ("5", 5.0),
        "log_backlog": ("1000", 1000),
        "admin_socket": (str(folder / "a.sock"), folder / "a.sock"),
        "secret": (str(secret), Secret(SECRET.encode())),
        "explorer": ("0", False),
        "emf": ("1", True),
        "log_level": ("DEBUG", "debug"),
    }


# What an option does not go without.
BESIDE = {
    "experiment": {"FASTRANK_CONTROL": "arms.json"},
    "arms": {"FASTRANK_EXPERIMENT": "warmer"},
    "pin": {"FASTRANK_WATCH": "models"},
    "watch_copies": {"FASTRANK_WATCH": "models"},
    "log_spool": {"FASTRANK_LOG": "s3://bucket/log"},
}


def test_every_option_comes_from_its_variables_and_the_command_line_goes_first(
    starter: Starter, tmp_path: Path
) -> None:
    given = examples(tmp_path)
    assert {"model", *given} == {each.name for each in fields(Settings)}
    for name, (text, value) in given.items():
        option = BY_FIELD[name]
        beside = BESIDE.get(name, {})
        usual = starter.settings(environ=beside if name != "arms" else {})
        own = f"FASTRANK_{option.name.upper().replace('-', '_')}"
        assert option.variables[0] == own
        for variable in option.variables:
            found = starter.settings(environ=beside | {variable: text})
            assert getattr(found, name) == value, variable
            named = {"FASTRANK_EXPERIMENT": "experiment", "FASTRANK_CONTROL": "control"}
            named |= {"FASTRANK_WATCH": "watch", "FASTRANK_LOG": "log_directory"}
            others = [e for e in given if e != name and e not in {named[b] for b in beside}]
            assert [getattr(found, each) for each in others] == [
                getattr(usual, each) for each in others
            ]
            if not text:
                continue
            default = getattr(usual, name)
            if option.is_flag:
                back: list[object] = [f"--{'' if default else 'no-'}{option.name}"]
            elif default in (None, ()):
                continue
            else:
                back = [f"--{option.name}", default]
            assert starter.settings(*back, environ=beside | {variable: text}) == usual


def test_the_model_may_come_from_the_environment(starter: Starter) -> None:
    result = starter.run(environ={"FASTRANK_MODEL": str(starter.model)})
    assert result.exit_code == 0, result.output
    assert starter.started[-1][0].model == starter.model
    result = starter.run(environ={"FASTRANK_MODEL": "/nowhere"})
    assert result.exit_code == 2
    assert "Invalid value for FASTRANK_MODEL: " in result.stderr


def test_a_model_need_not_be_there_where_one_is_watched(
    starter: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    for container in (False, True):
        for given in ({"FASTRANK_WATCH": "s3://bucket/models"}, {"FASTRANK_WATCH": str(tmp_path)}):
            result = starter.run(container=container, environ=given)
            assert result.exit_code == 0, result.output
            settings, _ = starter.started[-1]
            assert (settings.model, str(settings.watch)) == (None, given["FASTRANK_WATCH"])
        result = starter.run("--watch", "models", container=container)
        assert result.exit_code == 0, result.output
        assert starter.started[-1][0].model is None
        result = starter.run(tmp_path / "nowhere", "--watch", "models", container=container)
        assert result.exit_code == 2, result.output
    assert "model: give MODEL, or --watch" in starter.run().stderr
    result = starter.run(container=True)
    assert result.exit_code == 0, result.output
    assert starter.started[-1][0].model == tmp_path / "model"
    shutil.copytree(starter.model, tmp_path / "model", dirs_exist_ok=True)
    result = starter.run("--watch", "models", container=True)  # until one has arrived
    assert starter.started[-1][0].model == tmp_path / "model"


def test_several_are_divided_by_commas(starter: Starter, tmp_path: Path) -> None:
    for name in ("a.json", "b,c.json", "d.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "d.json").write_text('{"several": {}}')
    texts = (f"a={tmp_path}/a.json", f"b={tmp_path}/b,c.json", f"{tmp_path}/d.json")
    environ = {"FASTRANK_RULES": f'{texts[0]},"{texts[1]}",{texts[2]}'}
    assert starter.settings(environ=environ).rules == texts
    assert starter.settings("--rules", texts[0], environ=environ).rules == texts[:1]
    said = starter.refused(environ={"FASTRANK_RULES": '"a'})
    assert "FASTRANK_RULES: " in said
    assert "double quotes" in said
    assert "x.json" in starter.refused(environ={"FASTRANK_RULES": f"a={tmp_path}/x.json"})
    functions = {"FASTRANK_SCORE_FUNCTIONS": "json:loads,os:nothing"}
    assert "json:loads" in starter.refused(environ=functions)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FASTRANK_PORT", "http"),
        ("FASTRANK_PORT", "70000"),
        ("FASTRANK_PORT", "http://10.0.0.1:80"),
        ("FASTRANK_WORKERS", "0"),
        ("FASTRANK_DEADLINE", "soon"),
        ("FASTRANK_DEADLINE", "nan"),
        ("FASTRANK_DEADLINE", "inf"),
        ("FASTRANK_DRAIN_DELAY", "-1"),
        ("FASTRANK_KEEP_ALIVE", "0"),
        ("FASTRANK_EMF", "maybe"),
        ("FASTRANK_EXPLORER", "2"),
        ("FASTRANK_LOG_LEVEL", "loud"),
        ("FASTRANK_POLICY", "magic"),
        ("FASTRANK_FALLBACK", "plackett_luce:temperature=-1"),
        ("FASTRANK_LOG_DIR", __file__),
        ("FASTRANK_ADMIN_SOCKET", "/dev"),
        ("FASTRANK_CLIENTS_MAY", "k,sed"),
        ("FASTRANK_CLIENTS_MAY", "k,all"),
        ("FASTRANK_CLIENTS_MAY", "user_id"),
        ("FASTRANK_CLIENTS_MAY", "k:named"),
        ("FASTRANK_CLIENTS_MAY", "rules,rules:named"),
        ("FASTRANK_CLIENTS_MAY", ","),
        ("FASTRANK_GATEWAY_MAY", "request_id"),
        ("FASTRANK_ALLOW_POLICIES", "uniform,magic"),
        ("FASTRANK_ALLOW_POLICIES", "none"),
        ("FASTRANK_ALLOW_POLICIES", "plackett_luce:temperature=0"),
        ("FASTRANK_SECRET_FILE", "/dev"),
        ("FASTRANK_SECRET_FILE", "/dev/null"),
        ("FASTRANK_WATCH", __file__),
        ("FASTRANK_PIN", "models/v1"),
        ("FASTRANK_PIN", ".v1"),
        ("FASTRANK_WATCH_EVERY", "0"),
        ("FASTRANK_WATCH_BYTES", "0"),
        ("FASTRANK_LOG_BACKLOG", "-1"),
    ],
)
def test_a_bad_value_names_its_variable(starter: Starter, variable: str, value: str) -> None:
    said = starter.refused(environ={variable: value})
    assert re.search(rf"\b{variable}: ", said), said
    (option,) = (each for each in OPTIONS if variable in each.variables)
    if not option.is_flag:
        said = starter.refused(f"--{option.name}", value, environ={variable: "1"})
        assert f"--{option.name}" in said
        assert variable not in said


def test_what_is_empty_is_not_given(starter: Starter) -> None:
    empty = {name: "" for option in OPTIONS for name in option.variables}
    assert starter.settings(environ=empty) == starter.settings()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("FASTRANK_PROT", "FASTRANK_PORT"),
        ("FASTRANK_LOGDIR", "FASTRANK_LOG_DIR"),
        ("FASTRANK_POLICIES", "FASTRANK_POLICY"),
        ("FASTRANK_ADMINSOCKET", "FASTRANK_ADMIN_SOCKET"),
        ("FASTRANK_CACHEDIR", "FASTRANK_CACHE_DIR"),
        ("FASTRANK_SERVICE_HOSTS", ""),
        ("FASTRANK_", ""),
        ("FASTRANK_\x1b[2J", ""),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(
    starter: Starter, name: str, nearest: str
) -> None:
    said = starter.refused(environ={name: ""})
    assert f"(nearest: {nearest}" in said
    assert "\x1b" not in said


def test_all_unknown_names_are_said_in_one_line(starter: Starter) -> None:
    said = starter.refused(environ={"FASTRANK_B": "1", "FASTRANK_A": "1", "FASTRANKED": "1"})
    assert re.search(r"unknown settings: FASTRANK_A \(.*\), FASTRANK_B \(", said)
    assert "FASTRANKED" not in said


def test_what_the_package_reads_elsewhere_is_known(starter: Starter) -> None:
    """All that its files look for is an option's, or named beside them."""
    folders = [Path(fr.__file__).parent, Path(server.__file__).parent]
    texts = [path.read_text() for folder in folders for path in folder.rglob("*.py")]
    read = {name for text in texts for name in re.findall(r'environ\S*["\'](FASTRANK_\w+)', text)}
    read |= {name for text in texts for name in re.findall(r'["\'](FASTRANK_\w+)["\'] in ', text)}
    assert read == set(OTHERS)
    values = {"FASTRANK_TRACEBACK": "", "FASTRANK_SECRET": SECRET}
    starter.settings(environ=dict.fromkeys(OTHERS, "1") | values)


SERVICE = {
    "FASTRANK_SERVICE_HOST": "10.0.0.7",
    "FASTRANK_SERVICE_PORT": "8080",
    "FASTRANK_SERVICE_PORT_HTTP": "8080",
    "FASTRANK_PORT": "tcp://10.0.0.7:8080",
    "FASTRANK_PORT_8080_TCP": "tcp://10.0.0.7:8080",
    "FASTRANK_PORT_8080_TCP_PROTO": "tcp",
    "FASTRANK_PORT_8080_TCP_PORT": "8080",
    "FASTRANK_PORT_8080_TCP_ADDR": "10.0.0.7",
    "FASTRANK_BLUE_SERVICE_HOST": "10.0.0.8",
    "FASTRANK_BLUE_SERVICE_PORT": "8080",
    "FASTRANK_BLUE_PORT": "udp://10.0.0.8:8080",
    "FASTRANK_BLUE_PORT_8080_UDP_ADDR": "10.0.0.8",
}


def test_what_kubernetes_says_of_services_is_ignored(starter: Starter) -> None:
    assert starter.settings(environ=SERVICE) == starter.settings()
    starter.settings(environ=SERVICE)
    assert starter.started[-1][1] == sorted(SERVICE)
    own = starter.settings("--port", 1234, environ=SERVICE)
    assert own.port == 1234
    assert "FASTRANK_BLUE_PORT (nearest: " in starter.refused(environ={"FASTRANK_BLUE_PORT": "80"})


def test_it_is_warned_of(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "_serve", lambda *_, **__: 0)
    monkeypatch.setattr(server, "end_by_signals", lambda: None)
    assert server.run(Settings(model, port=0), ["FASTRANK_PORT", "FASTRANK_SERVICE_HOST"]) == 0
    (record,) = (each for each in caplog.records if each.levelname == "WARNING")
    assert "FASTRANK_PORT, FASTRANK_SERVICE_HOST" in record.getMessage()
    assert "enableServiceLinks: false" in record.getMessage()


def test_idle_connections_are_kept_for_so_long(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    monkeypatch.setattr(
        server._Server,
        "run",
        lambda self, sockets: seen.append(self.config.timeout_keep_alive),
    )
    assert server._serve(Settings(model, keep_alive=6), []) == 0
    assert seen == [6]


def test_two_that_contradict_each_other_are_refused_in_one_line(
    starter: Starter, tmp_path: Path
) -> None:
    both = {"FASTRANK_LOG": f"{tmp_path}/a", "FASTRANK_LOG_DIR": f"{tmp_path}/b"}
    said = starter.refused(environ=both)
    assert f"FASTRANK_LOG={tmp_path}/a and FASTRANK_LOG_DIR={tmp_path}/b" in said
    both["FASTRANK_LOG"] = both["FASTRANK_LOG_DIR"]
    assert starter.settings(environ=both).log_directory == tmp_path / "b"
    assert "k: expected at most max_k, 5; got 10" in starter.refused("--max-k", 5)
    assert "pin: v1 needs watch" in starter.refused("--pin", "v1")
    said = starter.refused("--log-spool", tmp_path)
    assert f"log_spool: {tmp_path} needs a log that is uploaded, and log is not given" in said
    said = starter.refused("--max-body", 100_000_000)
    assert "max_held: expected at least max_body, 100000000" in said


def arms(*texts: str) -> dict[str, Any]:
    return {"experiment": "e", "arms": texts}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"port": 70_000}, "port: 70000 is not in the range"),
        ({"port": "80"}, "port: expected a number, got '80'"),
        ({"workers": True}, "workers: expected a number, got True"),
        ({"queue": 1.0}, "queue: expected a number, got 1.0"),
        ({"deadline": float("nan")}, "deadline: expected a number of seconds; got nan"),
        ({"drain_timeout": 0.5}, "drain_timeout: 0.5 is not in the range"),
        ({"log_level": "INFO"}, "log_level: 'INFO' is not one of"),
        ({"k": 11, "max_k": 10}, "k: expected at most max_k, 10; got 11"),
        ({"clients_may": ("k", "sed")}, "clients_may: expected fields of a request"),
        ({"gateway_may": ("request_id",)}, "gateway_may: expected fields of a request"),
        ({"clients_may": ("k",), "allow_policies": ()}, "allow_policies: nobody may name"),
        ({"arms": ("all=uniform@1",)}, "arm: there is no experiment"),
        ({"experiment": "e"}, "experiment: it has no arms: state them by --arm, or --control"),
        ({"experiment": "e", "arms": ("all=uniform@1",), "policy": fr.Uniform()}, "policy: contr"),
        ({"experiment": "a b", "control": "c"}, "experiment: expected a name, of letters"),
        ({"control": ""}, "control: expected a path or a URL"),
        ({"control": "c", "control_every": 21.0}, "control_every: 21.0 is not in the range"),
        (arms("a=uniform@0.5"), "arm: shares must sum to 1, got 0.5"),
        (arms("a=uniform@0.6", "b=uniform@0.6"), "arm: shares must sum to 1, got 0.6 + 0.6 = 1.2"),
        (arms("a=uniform@0.5", "a=deterministic@0.5"), "arm: a is given twice"),
        (arms("a=uniform"), "arm: expected NAME=POLICY"),
        (  # as the commas of a variable cut it
            arms("a=plackett_luce:temperature=0.5", "head=1@1"),
            "arm: expected NAME=POLICY[:PARAM=VALUE,...]@SHARE, got"
            " 'a=plackett_luce:temperature=0.5' (in a variable, put one that contains a comma in",
        ),
        (arms("a=uniform@half"), "arm: a: expected a share of 0 to 1, got 'half'"),
        (arms("a=uniform@-0.5", "b=uniform@1.5"), "arm: a: expected a share of 0 to 1"),
        (arms("a=b=uniform@1"), "arm: a: expected POLICY"),
        (arms("a=magic@1"), "arm: a: expected [LABEL=]POLICY"),
        (arms("=uniform@1"), "arm: expected a name"),
        (arms("a=uniform:overlap=0.5@1"), "arm: a: uniform:overlap=0.5: overlap: "),
        ({"also": ("uniform",)}, "also: expected NAME=POLICY"),
        ({"also": ("a=uniform", "a=deterministic")}, "also: a is given twice"),
    ],
)
def test_settings_are_checked_by_the_same_table(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        Settings(Path("model"), **changes)


# ---- The container --------------------------------------------------------------------------


def test_a_container_has_defaults_and_variables_of_its_own(
    starter: Starter, tmp_path: Path
) -> None:
    (tmp_path / "model").symlink_to(starter.model)
    base = {"SAGEMAKER_BASE_DIR": str(tmp_path)}

    def started(*arguments: object, **environ: str) -> Settings:
        result = starter.run(*arguments, container=True, environ=base | environ)
        assert result.exit_code == 0, result.output
        return starter.started[-1][0]

    found = started()
    assert found.model == tmp_path / "model"
    assert (found.host, found.port) == ("0.0.0.0", 8080)
    assert found.explorer is False
    assert found.drain_delay > 0
    assert found.drain_delay + found.drain_timeout < 30  # when SageMaker sends SIGKILL
    for option in OPTIONS:
        if option.platform:
            text, value = examples(tmp_path)[option.field]
            assert getattr(started(**{option.platform: text}), option.field) == value
            own = {option.platform: "x", option.variables[0]: text}
            assert getattr(started(**own), option.field) == value
            result = starter.run(container=True, environ=base | {option.platform: "x"})
            assert f"Invalid value for {option.platform}: " in result.stderr
            assert getattr(starter.settings(environ={option.platform: text}), option.field) != value
    assert started(SAGEMAKER_CONTAINER_LOG_LEVEL="30").log_level == "warning"
    assert started("--port", 1, SAGEMAKER_BIND_TO_PORT="2").port == 1


# ---- The docs -------------------------------------------------------------------------------


def cell(option: Option) -> str:
    """A default in words."""
    if option.is_flag:
        shown, own = (("off", "on")[bool(each)] for each in (option.default, option.in_container))
    else:
        shown = option.shown or ("" if option.default in (None, ()) else f"`{option.default}`")
        own = option.shown_in_container or f"`{option.in_container}`"
    if option.in_container is None:
        return shown
    return f"{shown}; in the container {own}".removeprefix("; ")


def row(option: Option) -> str:
    name = f"`{option.name}`" if option.is_argument else f"`--{option.name}`"
    if option.is_flag:
        name = f"`--{option.name}`, `--no-{option.name}`"
    names = [*option.variables, *([option.platform] if option.platform else [])]
    words = option.words + (" Repeatable." if option.is_repeatable else "")
    return f"| {name} | {', '.join(f'`{each}`' for each in names)} | {cell(option)} | {words} |"


def table() -> list[str]:
    """The table of options in docs/reference/settings.md."""
    lines = ["| `fastrank serve` | environment | default | |", "|---|---|---|---|"]
    lines += [row(option) for option in OPTIONS]
    return lines + [f"| | `{name}` | | {words} |" for name, words in OTHERS.items()]


def test_the_page_has_the_table() -> None:
    if not PAGE.exists():
        pytest.skip("an sdist has the tests, and not the pages")
    found = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert found == table(), "\n" + "\n".join(table())


def test_the_help_has_every_option_and_variable() -> None:
    said = CliRunner().invoke(serve_command(), ["--help"]).output
    words = " ".join(said.split())
    for option in OPTIONS[1:]:
        assert f"--{option.name} " in words
        assert all(name in words for name in option.variables)
        assert option.words.split()[0] in words


def test_places_of_who_names_no_k_are_the_servers(model: Path) -> None:
    from served import ask, call

    async def work(app: Any) -> None:
        assert (await ask(app, user_id="u1")).json()["k"] == 4
        first = (await ask(app, user_id="u1", request_id="a")).body
        assert (await ask(app, user_id="u1", request_id="a", k=4)).body == first
        assert (await ask(app, user_id="u1", k=None)).status == 400
        document = (await call(app, "GET", "/openapi.json")).json()
        names = str(document)
        assert "'default': 4" in names
        assert "'default': 10" not in names
        reply = await call(app, "GET", "/1/recommended-items/u1", query="k=")
        assert reply.json()["k"] == 4

    with_app(model, work, k=4)
