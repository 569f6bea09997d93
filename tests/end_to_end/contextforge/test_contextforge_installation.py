"""Beginning trunkline inside ContextForge: what keeps it out, and what is told then."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from harness.contextforge import Version, environment, python_of, sourced
from harness.processes import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.contextforge, pytest.mark.timeout(300)]


def test_a_wrong_setting_is_told_once_and_no_worker_is_started(version: Version) -> None:
    python = python_of(version)
    assert python is not None
    command = [python, "-m", "trunkline.compat.contextforge", "--", "--port", "0", "--workers", "2"]
    with tempfile.TemporaryDirectory() as folder:
        variables = {**sourced(environment(version, 0, Path(folder), {})), "TRUNKLINE_REUSE": "everybody"}
        process = ServerProcess(command, env=variables, cwd=Path(folder))
        try:
            assert process.wait(60) == 2
            assert process.output() == "trunkline: TRUNKLINE_REUSE: must be none, workflow or user\n"
        finally:
            process.kill()


def run(version: Version, text: str, **env: str) -> str:
    """What a program in the environment of ContextForge prints."""
    with tempfile.TemporaryDirectory() as folder:
        variables = sourced(environment(version, 4444, Path(folder), env))
        python = python_of(version)
        assert python is not None
        ended = subprocess.run([python, "-c", text], env=variables, cwd=folder, capture_output=True, timeout=120)
    assert ended.returncode == 0, ended.stderr.decode()[-3000:]
    return ended.stdout.decode().strip().splitlines()[-1]


PROBE = """
import contextlib, importlib, json, os, pathlib, sys, types
from unittest import mock
from trunkline.compat import contextforge

tools = importlib.import_module("mcpgateway.services.tool_service")
cache = importlib.import_module("mcpgateway.cache.session_registry")
http = importlib.import_module("mcpgateway.transports.streamablehttp_transport")
base = tools.ClientSession.__mro__[1]

def names():
    return tools.streamablehttp_client, tools.ClientSession, cache.SessionRegistry, tools.ToolService.invoke_tool

def tried():
    stock = names()
    done = contextforge.install()
    return done.is_active, sum(a is b for a, b in zip(stock, names())), done.reason

@contextlib.contextmanager
def lacking(owner, name):
    stock = getattr(owner, name)
    delattr(owner, name)
    try:
        yield
    finally:
        setattr(owner, name, stock)

seen = {}
with mock.patch.dict(os.environ, TRUNKLINE_CONTEXTFORGE="off"):
    seen["off"] = tried()
pathlib.Path(".env").write_text("trunkline_contextforge=off\\n")
seen["off by file"] = tried()
pathlib.Path(".env").unlink()
for owner, name in (
    (tools, "create_span"),
    (cache.SessionRegistry, "broadcast"),
    (http, "StreamableHTTPSessionManager"),
    (importlib.import_module(base.__module__), "McpError"),
):
    with lacking(owner, name):
        seen[name] = tried()
with mock.patch.object(tools, "ClientSession", base):
    seen["initialize"] = tried()
with mock.patch.dict(sys.modules, {"mcpgateway.main": types.ModuleType("mcpgateway.main")}):
    try:
        tried()
    except RuntimeError as error:
        seen["late"] = str(error)
seen["on"] = tried()
print(json.dumps(seen))
"""
"""Installs trunkline under one condition after the other; what became of it, and how many of four names are stock's."""
LACKING = {
    "create_span": "mcpgateway.services.tool_service.create_span",
    "broadcast": "mcpgateway.cache.session_registry.SessionRegistry.broadcast",
    "StreamableHTTPSessionManager": "mcpgateway.transports.streamablehttp_transport.StreamableHTTPSessionManager",
    "initialize": "mcpgateway.services.tool_service.ClientSession.initialize",
    "McpError": "McpError",
}


@pytest.fixture(scope="module")
def probed(version: Version) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(version, PROBE))
    return found


@pytest.mark.parametrize("how", ["off", "off by file"])
def test_off_changes_nothing(probed: dict[str, Any], how: str) -> None:
    assert probed[how] == [False, 4, "TRUNKLINE_CONTEXTFORGE is off"]


@pytest.mark.parametrize("name", LACKING)
def test_a_version_that_lacks_a_name_is_left_as_it_is_and_the_name_is_told(probed: dict[str, Any], name: str) -> None:
    is_active, stock, reason = probed[name]
    assert (is_active, stock) == (False, 4)
    assert LACKING[name] in reason


def test_on_changes_all(probed: dict[str, Any]) -> None:
    assert probed["on"] == [True, 0, ""]


def test_it_is_too_late_after_the_gateway_was_imported(probed: dict[str, Any]) -> None:
    assert probed["late"] == "trunkline must be installed before mcpgateway.main is imported"


def test_the_example_of_an_application_path_puts_it_inside(version: Version) -> None:
    place = Path(__file__).parents[3] / "examples" / "contextforge"
    text = f"import sys\nsys.path.insert(0, {str(place)!r})\nimport app\nfrom trunkline.compat import contextforge\n"
    text += (
        "done = contextforge.installed()\nprint(done.is_active, done.installation.reuse.settings.reuse, app.app.title)"
    )
    assert run(version, text).startswith("True user ")
