"""Which proxy leads to a server, as the environment says."""

import pytest
from trunkline.mux.statistics import Statistics
from trunkline.transports.upstream.http1 import HTTP1Client
from trunkline.transports.upstream.http_proxied import ProxiedClient
from trunkline.transports.upstream.proxy import proxy_of
from trunkline.transports.upstream.streamable_http import StreamableHTTPConnector

pytestmark = pytest.mark.anyio


async def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert proxy_of("https://mcp.example/") is None
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert proxy_of("https://mcp.example/") == "http://proxy:3128"
    assert proxy_of("http://mcp.example/") is None
    assert proxy_of("https://x.inside.example/") is None
    for here in ("https://localhost/", "https://127.0.0.1:1/", "https://[::1]/", "https://x.localhost/"):
        assert proxy_of(here) is None
    near = StreamableHTTPConnector("x", "https://127.0.0.1/", Statistics())
    far = StreamableHTTPConnector("x", "https://mcp.example/", Statistics())
    assert isinstance(near.http, HTTP1Client)
    assert isinstance(far.http, ProxiedClient)
