"""What is built for a server from its settings."""

from pathlib import Path

import pytest
from harness.certificates import reads_of_the_systems
from trunkline.gateway.app import Gateway
from trunkline.gateway.settings import load
from trunkline.gateway.site import Site, site_of
from trunkline.mux.statistics import Statistics
from trunkline.transports.unfinished import Unfinished
from trunkline.transports.upstream.auto import AutoConnector
from trunkline.transports.upstream.sse import SSEConnector
from trunkline.transports.upstream.websocket import WebSocketConnector

pytestmark = pytest.mark.anyio


def bounds_of(site: Site) -> set[Unfinished]:
    """What bounds messages of this server that are not complete, on all its connections."""
    connector = site.connector
    if isinstance(connector, AutoConnector):
        assert site.modern_server is not None
        return {connector.streamable.unfinished, connector.sse.unfinished, site.modern_server.unfinished}
    assert isinstance(connector, WebSocketConnector | SSEConnector)
    return {connector.unfinished}


async def test_g10_what_a_server_sends_that_is_not_complete_is_bounded_by_one_bound_whatever_it_comes_on(
    tmp_path: Path,
) -> None:
    path, statistics = tmp_path / "trunkline.toml", Statistics()
    before: Site | None = None
    bounds: set[Unfinished] = set()
    urls = ("http://127.0.0.1:9/mcp", "http://127.0.0.1:9/x", "sse+http://127.0.0.1:9/sse", "ws://127.0.0.1:9/ws")
    for generation, url in enumerate(urls):
        path.write_text(f'[servers.x]\nurl = "{url}"\n')  # read again: what drains beside it counts, too
        before = site_of("x", load(path, environ={}), generation, statistics, tracer=None, before=before)
        bounds |= bounds_of(before)
        await before.connector.close()
    assert len(bounds) == 1


async def test_the_systems_certificates_are_read_once_for_all_servers_that_are_built_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = reads_of_the_systems(monkeypatch)
    path = tmp_path / "trunkline.toml"
    urls = ("https://127.0.0.1:9/mcp", "sse+https://127.0.0.1:9/sse", "wss://127.0.0.1:9/ws", "http://127.0.0.1:9/mcp")
    oauth = 'oauth = { issuer = "https://issuer.example/", client_id = "c", client_secret = "s" }'
    lines = [f'[servers.s{n}]\nurl = "{url}"\n' for n, url in enumerate(urls * 3)]
    lines += [f'[servers.o{n}]\nurl = "{urls[0]}"\n{oauth}\n' for n in range(3)]
    path.write_text("".join(lines))
    async with Gateway(load(path, environ={})).running() as gateway:
        assert len(reads) == 2  # those for issuers apart
        assert await gateway.reload(lambda: load(path, environ={}))
        assert len(reads) == 2
        path.write_text(path.read_text().replace("127.0.0.1:9/", "127.0.0.1:10/"))
        assert await gateway.reload(lambda: load(path, environ={}))
        assert len(reads) == 4  # what the system trusts by now
        path.write_text(path.read_text().replace('client_secret = "s"', 'client_secret = "t"'))
        assert await gateway.reload(lambda: load(path, environ={}))
        assert len(reads) == 5
