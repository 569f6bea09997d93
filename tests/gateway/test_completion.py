"""What the shell completes; that the shell asks for it is held by test_cli, in a real one."""

from pathlib import Path

import pytest
from harness.gateways import gateway as running_gateway
from harness.ports import free_port
from trunkline.gateway.call import perform, read_call
from trunkline.gateway.completion import handles, server_names, server_urls
from trunkline.gateway.sessions import Source

SERVERS = '[servers.files]\nurl = "${NOT_SET}"\n[servers."a.b"]\nurl = "http://h/"\n'


def test_servers_are_those_of_the_file_even_of_one_that_would_be_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(SERVERS)
    assert server_names(file) == ["files", "a.b"]
    assert server_urls(file)[0] == "http://127.0.0.1:8920/servers/files/mcp"


@pytest.mark.parametrize(
    ("gateway", "base"),
    [
        ('host = "0.0.0.0"\nport = 1', "http://127.0.0.1:1"),
        ('host = "::1"', "http://[::1]:8920"),
        ('tls = { cert = "c", key = "k" }', "https://127.0.0.1:8920"),
    ],
)
def test_urls_are_those_of_this_machine(tmp_path: Path, gateway: str, base: str) -> None:
    file = tmp_path / "t.toml"
    file.write_text(f"[gateway]\n{gateway}\n{SERVERS}")
    assert server_urls(file)[0] == f"{base}/servers/files/mcp"


def test_without_a_name_the_file_is_the_usual_one_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert server_names() == []
    (tmp_path / "trunkline.toml").write_text(SERVERS)
    assert server_names() == ["files", "a.b"]


@pytest.mark.parametrize("text", ["[", "servers = 1", "gateway = 1", ""])
def test_where_there_is_nothing_to_read_there_is_nothing_to_complete(tmp_path: Path, text: str) -> None:
    file = tmp_path / "t.toml"
    file.write_text(text)
    assert server_names(file) == server_urls(file) == []
    assert server_names(tmp_path) == []


@pytest.mark.anyio
async def test_handles_are_those_of_a_gateway_that_runs() -> None:
    with running_gateway() as gateway:
        await perform(read_call(gateway.url("demo"), "counter", "{}", kind=None, headers=[], workflow="k"))
        assert handles(gateway.base, None) == [row["workflow"] for row in Source(gateway.base).fetch()] != []
    assert handles(f"http://127.0.0.1:{free_port()}", None) == []
