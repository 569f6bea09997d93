"""What examples/ holds is read by the programs that it is for: settings, manifests, a unit."""

import configparser
import re
from pathlib import Path

import pytest
import yaml
from trunkline.gateway.process import GRACE_SECONDS
from trunkline.gateway.settings import Settings, load
from trunkline.gateway.workers.supervisor import MARGIN_SECONDS

EXAMPLES = Path(__file__).parent.parent / "examples"
ENVIRONMENT = {"TOKEN_SHA256": "0" * 64}
END_SECONDS = GRACE_SECONDS + MARGIN_SECONDS
"""After a drain: connections end, and workers that did not are killed."""


def manifests(path: str) -> list[dict]:
    return list(yaml.safe_load_all((EXAMPLES / path).read_text()))


def container(documents: list[dict]) -> dict:
    [deployment] = [document for document in documents if document["kind"] == "Deployment"]
    [found] = deployment["spec"]["template"]["spec"]["containers"]
    return found


def grace(text: str) -> int:
    return int(text.removesuffix("s"))


@pytest.fixture
def kubernetes_settings(tmp_path: Path) -> Settings:
    [config] = [document for document in manifests("kubernetes/trunkline.yaml") if document["kind"] == "ConfigMap"]
    (tmp_path / "trunkline.toml").write_text(config["data"]["trunkline.toml"])
    return load(tmp_path / "trunkline.toml", environ={})


def test_settings_of_the_containers_are_read() -> None:
    settings = load(EXAMPLES / "container/trunkline.toml", environ=ENVIRONMENT)
    assert settings.directory.backend == "redis"
    assert settings.auth.tokens[0].sha256 == "0" * 64


def test_containers_have_longer_to_stop_than_a_drain_takes() -> None:
    [compose] = manifests("container/compose.yaml")
    settings = load(EXAMPLES / "container/trunkline.toml", environ=ENVIRONMENT)
    service = compose["services"]["trunkline"]
    assert grace(service["stop_grace_period"]) > settings.gateway.drain_timeout + END_SECONDS
    assert set(service["depends_on"]) <= set(compose["services"])
    assert all((EXAMPLES / "container" / volume.split(":")[0]).exists() for volume in service["volumes"])


def test_pods_have_longer_to_stop_than_a_drain_takes(kubernetes_settings: Settings) -> None:
    documents = manifests("kubernetes/trunkline.yaml")
    [deployment] = [document for document in documents if document["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > kubernetes_settings.gateway.drain_timeout + END_SECONDS
    assert deployment["spec"]["replicas"] > 1
    assert kubernetes_settings.directory.backend == "redis"


def test_probes_ask_what_the_gateway_answers(kubernetes_settings: Settings) -> None:
    found = container(manifests("kubernetes/trunkline.yaml"))
    assert found["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert found["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert found["ports"] == [{"name": "http", "containerPort": kubernetes_settings.gateway.port}]


def test_what_is_named_in_the_manifests_is_there() -> None:
    documents = manifests("kubernetes/trunkline.yaml")
    names = {(document["kind"], document["metadata"]["name"]) for document in documents}
    [deployment] = [document for document in documents if document["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]
    assert ("ConfigMap", pod["spec"]["volumes"][0]["configMap"]["name"]) in names
    for document in documents:
        if document["kind"] in ("Service", "PodDisruptionBudget"):
            selector = document["spec"]["selector"]
            assert selector.get("matchLabels", selector) == pod["metadata"]["labels"]
    mounted = {mount["name"] for mount in container(documents)["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}


def test_the_unit_reloads_and_drains() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(EXAMPLES / "systemd/trunkline.service")
    service = unit["Service"]
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert int(service["TimeoutStopSec"]) > Settings().gateway.drain_timeout + END_SECONDS
    assert service["ExecStart"].split()[1:3] == ["serve", "/etc/trunkline/trunkline.toml"]


def test_the_image_installs_what_its_command_needs() -> None:
    lines = (EXAMPLES.parent / "Dockerfile").read_text().splitlines()
    text = "\n".join(lines)
    assert re.search(r"^ENTRYPOINT \[\"trunkline\"\]$", text, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", text, re.MULTILINE)
    assert re.search(r"^USER \d+$", text, re.MULTILINE), "it must not run as root"
