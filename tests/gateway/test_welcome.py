"""What a gateway says once it listens. That its commands work is held by test_cli, which runs them."""

import sys
from pathlib import Path

import pytest
from trunkline.gateway.settings import Server, Settings
from trunkline.gateway.settings.definitions import PoolingSection
from trunkline.gateway.welcome import program, welcome

URL = "http://127.0.0.1:8920"


def test_every_server_is_named_with_what_it_offers() -> None:
    servers = {"one": Server(url="http://h/"), "two": Server(url="http://h/", eras=("modern",))}
    told = welcome(Settings(servers=servers, pooling=PoolingSection(reuse="user")), URL, demo=False)
    assert f"{URL}/servers/one/mcp    (reuse: user; also /sse and /ws)" in told
    assert f"{URL}/servers/two/mcp    (2026-07-28 alone, which has no sessions)" in told
    assert "/servers/demo/" not in told
    assert "twice" not in told, "the last one has no session that could go on"


def test_the_demo_has_tools_to_try() -> None:
    told = welcome(Settings(servers={"one": Server(url="http://h/")}), URL, demo=True)
    assert f" call {URL}/servers/demo/mcp counter --workflow me" in told
    assert "tools/call" in told
    others = welcome(Settings(servers={"one": Server(url="http://h/")}), URL, demo=False)
    assert "tools/list" in others


def test_it_is_named_as_it_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = tmp_path / "bin dir" / "trunkline"
    installed.parent.mkdir()
    installed.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(installed)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == f"'{installed}'"
    monkeypatch.setenv("PATH", str(installed.parent))
    assert program() == "trunkline"
    monkeypatch.setattr(sys, "argv", ["/x/cli.py"])
    assert program() == f"{sys.executable} -m trunkline.gateway.cli"
