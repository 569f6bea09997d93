"""The client for a URL: by what the environment names, and whether there is a credential."""

import pytest
from trunkline.mux.statistics import Statistics
from trunkline.transports.upstream.credentials import AuthorizedClient, Credential, Token
from trunkline.transports.upstream.http1 import HTTP1Client
from trunkline.transports.upstream.http_client import http_client
from trunkline.transports.upstream.http_proxied import ProxiedClient

pytestmark = pytest.mark.anyio


class Source:
    async def fetch(self, challenge: str) -> Token:
        raise AssertionError("no request was sent")


def test_it_is_lean_unless_the_environment_names_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert isinstance(http_client("http://server.example/mcp"), ProxiedClient)
    assert isinstance(http_client("http://127.0.0.1/mcp"), HTTP1Client)


async def test_with_a_credential_it_carries_that() -> None:
    client = http_client("http://127.0.0.1/mcp", credential=Credential("x", Source(), Statistics()))
    assert isinstance(client, AuthorizedClient)
    await client.close()


def test_a_url_or_certificates_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ValueError, match="http"):
        http_client("ftp://127.0.0.1/")
    with pytest.raises(OSError):
        http_client("https://127.0.0.1/", "/nowhere")
