"""Which proxy leads to a server, as the environment says."""

from urllib.parse import urlsplit

import pytest
from harness.raw_http import Peer, serving
from trunkline.mux.errors import UpstreamUnreachable
from trunkline.mux.statistics import Statistics
from trunkline.transports import Servers
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
    monkeypatch.setenv("http_proxy", "proxy:3128")  # as curl takes it, and other clients
    assert proxy_of("http://mcp.example/") == "http://proxy:3128"
    monkeypatch.delenv("http_proxy")
    assert proxy_of("https://x.inside.example/") is None
    for here in ("https://localhost/", "https://127.0.0.1:1/", "https://[::1]/", "https://x.localhost/"):
        assert proxy_of(here) is None
    near = StreamableHTTPConnector("x", "https://127.0.0.1/", Statistics())
    far = StreamableHTTPConnector("x", "https://mcp.example/", Statistics())
    assert isinstance(near.http, HTTP1Client)
    assert isinstance(far.http, ProxiedClient)


@pytest.mark.parametrize("scheme", ["ws", "wss", "https"])
@pytest.mark.parametrize(
    "proxy",
    ["http://{at}", "socks5://{at}", "nonsense://{at}", "http://a:b@{at}/x", "http://%ff:b@{at}", "h:x", "http://["],
)
async def test_a_proxy_that_does_not_connect_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch, proxy: str, scheme: str
) -> None:
    """One of SOCKS wants a package that need not be there: it was taken for a defect."""

    async def serve(peer: Peer) -> None:
        await peer.some()
        await peer.say(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    async with serving(serve) as server:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy.format(at=urlsplit(server.url).netloc))
        async with Servers({"x": f"{scheme}://mcp.example/"}) as servers:
            with pytest.raises(UpstreamUnreachable, match=r"no connection through the proxy$") as caught:
                async with servers.lease("x"):
                    pass
    assert caught.value.data == {"executed": "no"}


@pytest.mark.parametrize("proxy", ["socks5://{at}", "http://["])
async def test_what_is_no_proxy_of_http_gets_no_request(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    async with serving(Peer.some) as server:
        monkeypatch.setenv("http_proxy", proxy.format(at=urlsplit(server.url).netloc))
        async with Servers({"x": "http://mcp.example/"}) as servers:
            with pytest.raises(UpstreamUnreachable, match=r"no connection through the proxy$"):
                async with servers.lease("x"):
                    pass


async def test_a_proxy_that_hangs_up_has_sent_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Peer.some) as server:
        monkeypatch.setenv("https_proxy", server.url)
        async with Servers({"x": "https://mcp.example/"}) as servers:
            with pytest.raises(UpstreamUnreachable, match=r"no connection through the proxy$") as caught:
                async with servers.lease("x"):
                    pass
    assert caught.value.data == {"executed": "no"}
