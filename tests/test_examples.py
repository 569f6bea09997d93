"""What examples/ holds is run; settings, manifests and units are read by the programs that they are for."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from harness.browser import Browser, Site
from harness.cutter import Cutter
from harness.gateways import Gateway, environment, until
from harness.gateways import gateway as running_gateway
from harness.ports import free_port
from harness.processes import ServerProcess, wait_for_status
from trunkline.gateway.call import CallFailed, perform, read_call
from trunkline.gateway.process import GRACE_SECONDS
from trunkline.gateway.settings import Settings, load
from trunkline.gateway.workers.supervisor import MARGIN_SECONDS
from trunkline.transports.guard import Guard

EXAMPLES = Path(__file__).parent.parent / "examples"
ENVIRONMENT = {"TOKEN_SHA256": "0" * 64}
POD = "10.1.2.3"
END_SECONDS = GRACE_SECONDS + MARGIN_SECONDS
"""After a drain: connections end, and workers that did not are killed."""

STARTS, STARTS_SECONDS = 5, 10
"""Over so many in so many seconds, systemd gives up a unit that does not say otherwise."""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site((EXAMPLES / "browser/page.html").read_text()).served() as served:
        yield served


@pytest.fixture(scope="module")
def gateway(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The demo, open to the page of the browser's example."""
    toml = tmp_path_factory.mktemp("examples") / "trunkline.toml"
    toml.write_text(f'[gateway]\nallowed_origins = ["{site.origin}"]\n')
    with running_gateway("--demo", toml=toml) as running:
        yield running


def run(path: str, *arguments: str) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / path), *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_agent_has_fifty_calls_under_way_on_one_session(gateway: Gateway) -> None:
    told = run("agent/agent.py", gateway.url("demo"))
    assert re.fullmatch(r"50 x 2 steps in 0\.5 s\n50 calls in [\d.]+ s, over 1 session\n", told), told


def test_the_client_of_the_sdk_stays_in_its_session_over_a_websocket(gateway: Gateway) -> None:
    url = gateway.url("demo").replace("http://", "ws://").replace("/mcp", "/ws")
    assert run("websocket/client.py", url) == "1\n2\n3\n"


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "kind"), [("EventSource", "Stream"), ("WebSocket", "Socket")])
async def test_the_page_gets_an_answer_though_it_was_cut_and_goes_on_in_its_session(
    gateway: Gateway, site: Site, chromium: Browser, name: str, kind: str
) -> None:
    call = f"call({json.dumps(name)}, {kind})"
    slow = f'call({json.dumps(name)}, {kind}, "slow", {{ steps: 1, seconds: 2 }})'
    async with Cutter(gateway.port) as cutter:
        server = f"http://127.0.0.1:{cutter.port}/servers/demo"
        async with chromium.page(f"{site.origin}/#{server}") as page:
            assert [await page.run(call) for _ in range(2)] == [f"{name}: 1", f"{name}: 2"]
            await page.run(f"void (globalThis.pending = {slow})")
            await until(lambda: gateway.metric("trunkline_inflight", server="demo") == 1)
            cut = len(cutter.connections)
            for connection in cutter.connections:
                connection.cut()
            assert await page.run("pending") == f"{name}: 1 steps in 2 s"
            assert len(cutter.connections) > cut, "it came back over another connection"
            assert await page.run(call) == f"{name}: 3"


@pytest.mark.anyio
async def test_the_application_knows_its_callers_apart() -> None:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    process = ServerProcess(command, env=environment(), cwd=EXAMPLES / "fastapi")

    async def add(user: str, path: str = "mcp", key: str = "sum") -> list[str]:
        headers = [f"Authorization: Bearer secret-of-{user}"]
        scheme = "ws" if path == "ws" else "http"
        url = f"{scheme}://127.0.0.1:{port}/tools/{path}"
        wanted = read_call(url, "add", '{"n": 5}', kind=None, headers=headers, workflow=key)
        return (await perform(wanted)).texts

    try:
        wait_for_status(process, port, "/health")
        asked = [("alice", "mcp"), ("alice", "ws"), ("alice", "sse"), ("bob", "mcp")]
        assert [await add(*one) for one in asked] == [["5"], ["10"], ["15"], ["5"]]
        with pytest.raises(CallFailed, match="401"):
            await add("nobody")
    finally:
        process.kill()


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
    return load(tmp_path / "trunkline.toml", environ={"POD_IP": POD})


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
    told, seconds = container(documents)["lifecycle"]["preStop"]["exec"]["command"]
    assert told == "sleep", "a pod is called for a moment longer, and one without a call under way ends at once"
    end = int(seconds) + kubernetes_settings.gateway.drain_timeout + END_SECONDS
    assert pod["terminationGracePeriodSeconds"] > end
    assert deployment["spec"]["replicas"] > 1
    assert kubernetes_settings.directory.backend == "redis"


def test_probes_ask_what_the_gateway_answers(kubernetes_settings: Settings) -> None:
    found = container(manifests("kubernetes/trunkline.yaml"))
    assert found["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert found["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert found["ports"] == [{"name": "http", "containerPort": kubernetes_settings.gateway.port}]


def test_a_pod_may_be_scraped_where_its_annotations_say(kubernetes_settings: Settings) -> None:
    documents = manifests("kubernetes/trunkline.yaml")
    [deployment] = [document for document in documents if document["kind"] == "Deployment"]
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    [address] = container(documents)["env"]
    assert (address["name"], address["valueFrom"]["fieldRef"]["fieldPath"]) == ("POD_IP", "status.podIP")
    guard = Guard(loopback=False, allowed_hosts=kubernetes_settings.gateway.allowed_hosts)
    guard.check({"host": f"{POD}:{annotations['prometheus.io/port']}"})


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
    assert service["Restart"] == "always", "systemd takes the SIGHUP of a reload that comes too early for a wanted end"
    assert int(service["RestartSec"]) * STARTS > STARTS_SECONDS, (
        "it is started again for as long as its directory is away"
    )
    assert int(service["TimeoutStopSec"]) > Settings().gateway.drain_timeout + END_SECONDS
    assert service["ExecStart"].split()[1:3] == ["serve", "/etc/trunkline/trunkline.toml"]


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing")
    unit = tmp_path / "trunkline.service"
    text = (EXAMPLES / "systemd/trunkline.service").read_text()
    unit.write_text(text.replace("/opt/trunkline/bin/trunkline", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_example_is_in_the_list_and_has_a_test() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for folder in (path for path in EXAMPLES.iterdir() if path.is_dir() and os.listdir(path)):
        assert f"({folder.name}/" in listed, f"{folder.name} is not listed"


def test_the_image_installs_what_its_command_needs() -> None:
    lines = (EXAMPLES.parent / "Dockerfile").read_text().splitlines()
    text = "\n".join(lines)
    assert re.search(r"^ENTRYPOINT \[\"trunkline\"\]$", text, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", text, re.MULTILINE)
    assert re.search(r"^USER \d+$", text, re.MULTILINE), "it must not run as root"
