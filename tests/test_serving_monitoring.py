"""The dashboard and the alerts ask for what a server has, and Prometheus takes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")
pytest.importorskip("starlette")
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from served import ask, call, make_model

import fastrank as fr
from fastrank.eventlog import LogUploader
from fastrank_serving.app import create_app
from fastrank_serving.beside import count_uploads
from fastrank_serving.board import Board
from fastrank_serving.metrics import Metrics
from fastrank_serving.secret import Secret
from fastrank_serving.settings import Settings
from fastrank_serving.watching import Watcher

FOLDER = Path(__file__).parents[1] / "serving" / "monitoring"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PROMETHEUS = {"instance", "job"}  # labels that it adds to all


def asked(panel: dict[str, Any]) -> list[str]:
    """The expressions of a panel, with values for what Grafana fills in."""
    filled = {"$__rate_interval": "5m", "$instance": ".*"}
    found = []
    for target in panel["targets"]:
        expression: str = target["expr"]
        for name, value in filled.items():
            expression = expression.replace(name, value)
        assert "$" not in expression
        found.append(expression)
    return found


EXPRESSIONS = {
    **{
        f"{panel['title']} {j}": expression
        for panel in DASHBOARD["panels"]
        for j, expression in enumerate(asked(panel))
    },
    **{rule["alert"]: rule["expr"] for rule in RULES},
}

Samples = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of one of two workers, which has answered and refused."""
    folder = tmp_path_factory.mktemp("monitoring")
    make_model(folder / "model", policy=fr.PlackettLuce(1.0))
    (folder / "control.json").write_text('{"revision": 1}')
    settings = Settings(
        model=folder / "model",
        threads=1,
        log_directory=folder / "log",
        fallback=fr.Uniform(),
        secret=Secret(bytes(range(32))),
        experiment="warmer",
        arms=("control=deterministic@0.5", "explore=uniform@0.5"),
        control=str(folder / "control.json"),
    )

    async def work() -> str:
        with contextlib.closing(Board(2)) as board:
            app = create_app(settings, counted=Metrics(board, 0))
            await app.service.start()
            for user in ("u1", "nobody"):
                await ask(app, user_id=user)
            await ask(app, user_id="u1", seed=1, k=-1)
            await ask(app, user_id="u1", seed=1)
            reply = await call(app, "GET", "/metrics")
            await app.service.close()
            return reply.body.decode()

    return asyncio.run(work()) + page_beside(folder)


def page_beside(folder: Path) -> str:
    """Of the process that watches and uploads."""
    (folder / "watched").mkdir()
    (folder / "copies").mkdir()
    registry = CollectorRegistry()
    Watcher(Settings(watch=folder / "watched", watch_copies=folder / "copies"), registry)
    with LogUploader(folder / "spool", folder / "far") as uploader:
        count_uploads(uploader, registry)
        return generate_latest(registry).decode()


@pytest.fixture(scope="module")
def live(page: str) -> Samples:
    """By names: the labels of each sample."""
    found: Samples = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


def selectors(expression: str) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Each metric with its matchers, label -> (operator, value)."""
    for name, _, inside in re.findall(
        r"\b((?:fastrank|process|python|go|up)(?:_\w+)?)\b({([^}]*)})?", expression
    ):
        if name == "process":  # a label
            continue
        matchers = re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', inside)
        yield name, {label: (operator, value) for label, operator, value in matchers}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_server_has_what_is_asked_for(name: str, live: Samples) -> None:
    expression = EXPRESSIONS[name]
    found = list(selectors(expression))
    assert found
    labels = set(PROMETHEUS)
    for metric, matchers in found:
        assert metric in live, f"{metric}: not in /metrics"
        own = live[metric]
        labels |= {label for each in own for label in each}
        for label, (operator, value) in matchers.items():
            if label in PROMETHEUS:
                continue
            assert all(label in each for each in own), f"{metric} has no label {label}"
            if operator == "=" and label != "status":
                assert value in {each[label] for each in own}, f"{metric}: {label} is never {value}"
    for listed in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression):
        assert {each.strip() for each in listed.split(",")} <= labels


def test_what_is_lost_and_refused_is_watched() -> None:
    text = " ".join(rule["expr"] for rule in RULES)
    for name in ("rows_dropped", "rows_refused_total", "upload_rows_lost"):
        assert f"fastrank_log_{name}" in text
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    assert all(rule["labels"]["severity"] in ("page", "ticket") for rule in RULES)
    assert all(rule["annotations"]["summary"] for rule in RULES)


def test_every_alert_is_called_in_its_test() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
    called = set()
    for each in tests:
        for expected in each.get("promql_expr_test", ()):
            called |= {*re.findall(r'alertname="(\w+)"', json.dumps(expected["exp_samples"]))}
        called |= {
            one["alertname"] for one in each.get("alert_rule_test", ()) if "exp_alerts" in one
        }
    called |= {*re.findall(r'alertname=\\"(\w+)\\"', json.dumps(tests))}
    assert called == {rule["alert"] for rule in RULES}


def test_the_dashboard_is_one() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken = {
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in panels
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    }
    assert len(taken) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in panels)
    assert max(x for x, _ in taken) < 24
    names = {each["name"] for each in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$(?!__)(\w+)", json.dumps(DASHBOARD))) <= names
    for panel in panels:
        refs = [each["refId"] for each in panel["targets"]]
        assert len(set(refs)) == len(refs)
        assert panel["description"].endswith(".")


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not here: Debian's package prometheus has it")
    return found


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_alerts(promtool: str) -> None:
    assert f"SUCCESS: {len(RULES)} rules found" in run(
        promtool, "check", "rules", "--lint-fatal", FOLDER / "alerts.yaml"
    )
    assert "SUCCESS" in run(promtool, "test", "rules", FOLDER / "alerts_test.yaml")


def test_prometheus_takes_what_the_dashboard_asks(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{j}", "expr": expression}
        for j, expression in enumerate(EXPRESSIONS.values())
    ]
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]})
    )
    run(promtool, "check", "rules", tmp_path / "rules.yaml")


def test_prometheus_takes_the_page(promtool: str, page: str) -> None:
    """Its names and words, too, have the form that it advises."""
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
