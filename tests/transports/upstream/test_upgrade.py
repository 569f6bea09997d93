"""What WebSockets to servers have in common. `test_websocket` and `test_dialer` hold what becomes of them."""

import ssl

import pytest
from trunkline.transports.upstream.http import HeaderBlock
from trunkline.transports.upstream.upgrade import OtherProtocol, Upgrade
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

pytestmark = pytest.mark.anyio

PATIENCE = 10.0
MCP = Subprotocol("mcp")


def no_tls() -> ssl.SSLContext:
    raise AssertionError("it is not needed")


@pytest.mark.parametrize("url", ["http://x/", "ws://", "ws:///x", "ws://x/#f", "x:80/ws", ""])
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="ws:// or wss://"):
        Upgrade(url, no_tls)


def test_what_tls_needs_is_made_where_it_is_used() -> None:
    Upgrade("ws://x/", no_tls)
    with pytest.raises(AssertionError):
        Upgrade("wss://x/", no_tls)


@pytest.mark.parametrize("spoken", [[MCP], None])
async def test_a_connection_is_of_the_subprotocol_or_it_is_cut(spoken: list[Subprotocol] | None) -> None:
    asked: list[ServerConnection] = []

    async def handle(connection: ServerConnection) -> None:
        asked.append(connection)
        await connection.wait_closed()

    class Mine(ClientConnection):
        pass

    async with serve(handle, "127.0.0.1", 0, subprotocols=spoken) as server:
        upgrade = Upgrade(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", no_tls)
        opening = upgrade.open(HeaderBlock({"X-Tenant": "acme"}), Mine, patience=PATIENCE, ping_seconds=None)
        if spoken is None:
            with pytest.raises(OtherProtocol, match="subprotocol mcp"):
                await opening
        else:
            connection = await opening
            assert isinstance(connection, Mine)
            assert connection.ping_interval is None
            await connection.close()
        headers = asked[0].request.headers
        await asked[0].wait_closed()
    assert (headers["x-tenant"], headers["user-agent"]) == ("acme", "trunkline")
    assert "sec-websocket-extensions" not in headers, "no compression"
