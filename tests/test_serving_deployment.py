"""How the image is run: its health check, and the Deployment of Kubernetes."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")
import yaml
from environment import inherited
from patience import PATIENCE
from servers import Container, free_port, make_model

from fastrank_serving.settings import OPTIONS, OTHERS, Settings

SERVING = Path(__file__).parents[1] / "serving"
CONTAINER = {
    option.field: option.default if option.in_container is None else option.in_container
    for option in OPTIONS
}


class TestImage:
    def command(self) -> list[str]:
        """What asks whether the container is well."""
        text = (SERVING / "container" / "Dockerfile").read_text().replace("\\\n", " ")
        (found,) = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", text, re.MULTILINE)
        words: list[str] = json.loads(found)
        assert words[0] == "python"
        return [sys.executable, *words[1:]]

    def test_its_health_is_whether_it_is_ready(self, tmp_path: Path) -> None:
        make_model().save(tmp_path / "model")
        port = str(free_port())
        # A port that is stated twice is read by both in the same way.
        environ = {"SAGEMAKER_BIND_TO_PORT": "1", "FASTRANK_PORT": port}
        asked = {**inherited(), **environ}

        def health() -> int:
            done = subprocess.run(
                self.command(), env=asked, capture_output=True, timeout=PATIENCE, check=False
            )
            assert done.stdout + done.stderr == b""
            return done.returncode

        assert health() == 1
        with Container(tmp_path, environ) as container:
            container.client.address = ("127.0.0.1", int(port))
            container.wait()
            assert health() == 0
            assert container.stop() == 0


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((SERVING / "kubernetes.yaml").read_text()))


@pytest.fixture(scope="module")
def pod(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (each for each in documents if each["kind"] == "Deployment")
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


class TestDeployment:
    @pytest.mark.slow
    def test_it_is_of_the_form_that_kubernetes_has(self, documents: list[dict[str, Any]]) -> None:
        validator = pytest.importorskip("kubernetes_validate")
        assert [each["kind"] for each in documents] == ["Deployment", "Service"]
        for version in ("1.30", "1.34"):  # the first that heeds preStop's sleep, and a late one
            for each in documents:
                validator.validate(each, version, strict=True)
        wrong = copy.deepcopy(documents[0])
        wrong["spec"]["template"]["spec"]["enableServiceLink"] = False
        with pytest.raises(validator.ValidationError, match="enableServiceLink"):
            validator.validate(wrong, "1.30", strict=True)

    def test_the_drain_fits_into_the_time_that_a_pod_is_given(self, pod: dict[str, Any]) -> None:
        (container,) = pod["containers"]
        before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = CONTAINER["drain_delay"] + CONTAINER["drain_timeout"]
        assert before + drain + 5 <= pod["terminationGracePeriodSeconds"]
        # In the delay readiness is asked, and found wanting, before nobody is accepted any more.
        ready = container["readinessProbe"]
        assert ready["periodSeconds"] * ready["failureThreshold"] < CONTAINER["drain_delay"]

    def test_nothing_can_be_written_and_nobody_is_root(self, pod: dict[str, Any]) -> None:
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert [each["readOnly"] for each in container["volumeMounts"]] == [True]
        assert pod["enableServiceLinks"] is False

    def test_probes_ask_what_the_server_answers(
        self, pod: dict[str, Any], documents: list[dict[str, Any]]
    ) -> None:
        (container,) = pod["containers"]
        (port,) = container["ports"]
        assert port["containerPort"] == CONTAINER["port"]
        paths = {
            name: container[f"{name}Probe"]["httpGet"]
            for name in ("startup", "readiness", "liveness")
        }
        assert {name: each["path"] for name, each in paths.items()} == {
            "startup": "/ping",
            "readiness": "/ping",
            "liveness": "/livez",
        }
        assert {each["port"] for each in paths.values()} == {port["name"]}
        (service,) = documents[1]["spec"]["ports"]
        assert service["targetPort"] == port["name"]

    def test_its_settings_are_there(self, pod: dict[str, Any]) -> None:
        (container,) = pod["containers"]
        known = {name for option in OPTIONS for name in option.variables}
        assert {each["name"] for each in container["env"]} <= known | {*OTHERS}
        (mount,) = container["volumeMounts"]
        assert mount["mountPath"] == "/opt/ml/model"

    @pytest.mark.slow
    def test_models_that_arrive_and_a_log_in_s3_have_their_place(
        self, documents: list[dict[str, Any]]
    ) -> None:
        """What the file says of them, as if it were not commented out."""
        validator = pytest.importorskip("kubernetes_validate")
        text = (SERVING / "kubernetes.yaml").read_text().rpartition("# ----")[2]
        lines = [line.removeprefix("#") for line in text.splitlines() if line.startswith("#    ")]
        more = yaml.safe_load("\n".join(lines))
        whole = copy.deepcopy(documents[0])
        spec = whole["spec"]["template"]["spec"]
        for name, value in more["containers"][0].items():
            spec["containers"][0][name] = value
        spec["volumes"] = more["volumes"]
        spec["securityContext"] |= more["securityContext"]
        validator.validate(whole, "1.34", strict=True)
        env = {each["name"]: each["value"] for each in spec["containers"][0]["env"]}
        known = {name: option for option in OPTIONS for name in option.variables}
        settings = Settings(
            **{known[n].field: known[n].takes.convert(v, None, None) for n, v in env.items()}
        )
        assert settings.is_log_uploaded
        mounts = {each["mountPath"]: each["name"] for each in spec["containers"][0]["volumeMounts"]}
        assert {*mounts} == {str(settings.watch_copies), str(settings.log_spool)}
        assert {*mounts.values()} == {each["name"] for each in spec["volumes"]}
