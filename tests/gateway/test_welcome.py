"""What a gateway says once it listens. That its commands work is held by test_cli_serve, which runs them."""

import sys
from pathlib import Path

import pytest
from trunkline.gateway.settings import AuthSection, GatewaySection, Server, Settings, TokenEntry
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
    assert f" call {URL}/servers/demo/mcp counter --workflow my-chat" in told
    assert "tools/call" in told
    others = welcome(Settings(servers={"one": Server(url="http://h/")}), URL, demo=False)
    assert "tools/list" in others


@pytest.mark.parametrize(
    ("gateway", "url", "base"),
    [
        (GatewaySection(public_url="https://mcp.example/"), URL, "https://mcp.example"),
        (GatewaySection(allowed_hosts=("mcp.example",)), URL, URL),
        (
            GatewaySection(host="0.0.0.0", allowed_hosts=("a.example", "b")),
            "http://0.0.0.0:8920",
            "http://a.example:8920",
        ),
        (GatewaySection(host="::", allowed_hosts=("mcp.example:443",)), "https://[::]:8920", "https://mcp.example:443"),
        (GatewaySection(host="::", allowed_hosts=("[fd00::1]",)), "http://[::]:8920", "http://[fd00::1]:8920"),
        (GatewaySection(host="::", allowed_hosts=("fd00::1",)), "http://[::]:8920", "http://[fd00::1]:8920"),
    ],
)
def test_clients_are_given_a_url_that_they_can_reach(gateway: GatewaySection, url: str, base: str) -> None:
    told = welcome(Settings(gateway=gateway, servers={"one": Server(url="http://h/")}), url, demo=False)
    assert told.startswith(f"trunkline listens on {url}\n")
    assert f"  {base}/servers/one/mcp    (" in told
    assert f"any MCP client to {base}/servers/one/mcp" in told
    assert f"curl -s {base}/servers/one/mcp " in told or f"curl -si {base}/servers/one/mcp " in told


def test_who_may_look_into_it_is_told_what_that_takes() -> None:
    tokens = AuthSection(mode="tokens", tokens=(TokenEntry(sha256="0" * 64, tenant="", subject="a", admin=True),))
    admitted = welcome(Settings(auth=tokens), URL, demo=True)
    assert f'sessions {URL} --token "$ADMIN_TOKEN"' in admitted
    nobody = welcome(Settings(auth=AuthSection(mode="jwt", issuer="https://i.example")), URL, demo=True)
    assert "sessions http" not in nobody
    assert "gateway.admin_token" in nobody
    assert "https://i.example" in nobody
    behind = welcome(Settings(gateway=GatewaySection(public_url="https://mcp.example")), URL, demo=True)
    assert f"sessions {URL}\n" in behind, "who is on the machine needs no token"


def test_it_is_named_as_it_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = tmp_path / "bin dir" / "trunkline"
    installed.parent.mkdir()
    installed.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(installed)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == f"'{installed}'"
    monkeypatch.setenv("PATH", str(installed.parent))
    assert program() == "trunkline"
    monkeypatch.setattr(sys, "argv", ["/x/__main__.py"])
    assert program() == f"{sys.executable} -m trunkline.gateway"
