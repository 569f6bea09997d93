"""A connection comes about, or there is one word on why not, and on whether another try may help."""

import socket
import ssl
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from harness.ports import free_port
from harness.raw_http import Peer, serving
from harness.scripted_ws import ScriptedServer
from trunkline.transports.dialer import CannotConnect, Dialer

pytestmark = pytest.mark.anyio

PATIENCE = 10.0


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as running:
        yield running


def dialer(url: str, **headers: str) -> Dialer:
    return Dialer(url, headers, None, None)


async def refused(url: str, patience: float = PATIENCE) -> CannotConnect:
    with pytest.raises(CannotConnect) as caught:
        await dialer(url).dial({}, patience)
    return caught.value


async def test_it_connects_with_its_headers_and_those_of_the_moment(server: ScriptedServer) -> None:
    connection = await dialer(server.url, Kept="a", Replaced="b").dial({"replaced": "c"}, PATIENCE)
    await connection.close()
    assert connection.subprotocol == "mcp"
    asked = server.asked[0]
    assert (asked["kept"], asked["replaced"]) == ("a", "c")
    assert asked["user-agent"] == "trunkline"
    assert "permessage-deflate" not in asked.get("sec-websocket-extensions", "")


@pytest.mark.parametrize(
    ("workflow", "headers", "keyed"),
    [(None, {}, False), ("mine", {}, True), (None, {"Trunkline-Workflow": "mine"}, True)],
)
async def test_it_knows_whether_others_may_share_the_session(
    server: ScriptedServer, workflow: str | None, headers: dict[str, str], keyed: bool
) -> None:
    made = Dialer(server.url, headers, workflow, None)
    assert made.is_keyed is keyed
    await (await made.dial({}, PATIENCE)).close()
    assert server.asked[0].get("trunkline-workflow") == ("mine" if keyed else None)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/ws", "ws://", "127.0.0.1:80/ws", "ws://127.0.0.1/#f", "", "ws://a..b/"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="ws:// or wss://"):
        dialer(url)


def test_headers_that_would_end_the_header_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        dialer("ws://127.0.0.1/", Name="a\r\nOther: b")


async def test_nobody_listens(server: ScriptedServer) -> None:
    error = await refused(f"ws://user:secret@127.0.0.1:{free_port()}/ws?token=secret")
    assert "Connection refused" in str(error) or "cannot be reached" in str(error)
    assert "secret" not in str(error)
    assert (error.status, error.may_pass) == (None, True)


@pytest.mark.parametrize(
    ("status", "may_pass"), [(400, False), (401, False), (403, False), (404, False), (429, True), (503, True)]
)
async def test_a_refusal_is_told_with_its_status(server: ScriptedServer, status: int, may_pass: bool) -> None:
    body = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"because"}}'
    server.refusals.append((status, {"Retry-After": "7"}, body))
    error = await refused(server.url)
    assert str(error) == f"{server.url} answered HTTP {status}: because"
    assert (error.status, error.may_pass) == (status, may_pass)
    assert error.retry_after == 7.0


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"jsonrpc":"2.0","id":1,"result":{}}', b"[]", b'"x"'])
async def test_a_body_that_is_no_error_is_not_repeated(server: ScriptedServer, body: bytes) -> None:
    server.refusals.append((404, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, body))
    error = await refused(server.url)
    assert str(error) == f"{server.url} answered HTTP 404"
    assert error.retry_after == 0.0


async def test_words_that_would_steer_a_terminal_are_not_repeated(server: ScriptedServer) -> None:
    body = b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"\\u001b[2J"}}'
    server.refusals.append((404, {}, body))
    assert str(await refused(server.url)) == f"{server.url} answered HTTP 404"


async def test_a_redirect_is_a_refusal_and_takes_no_header_along(server: ScriptedServer) -> None:
    async with ScriptedServer() as other:
        server.refusals.append((307, {"Location": other.url}, b""))
        error = await refused(server.url)
        assert (error.status, error.may_pass) == (307, False)
        assert other.asked == []


async def raw() -> tuple[anyio.abc.SocketListener, str]:
    """A listener, and the URL of it."""

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=free_port())
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    return listener, f"ws://127.0.0.1:{port}/"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 Switching", b"nonsense\r\n\r\n"])
async def test_a_connection_that_is_cut_in_the_handshake_may_be_tried_again(answer: bytes) -> None:
    listener, url = await raw()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            if answer:
                await stream.send(answer)

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        error = await refused(url)
        assert (error.status, error.may_pass) == (None, True)
        tasks.cancel_scope.cancel()


async def test_a_server_that_says_nothing_is_waited_for_in_bounds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        error = await refused(f"ws://127.0.0.1:{listener.getsockname()[1]}/", patience=0.2)
    assert "no answer in time" in str(error)
    assert error.may_pass


async def test_a_server_that_takes_no_tls_is_told_so(server: ScriptedServer) -> None:
    context = ssl.create_default_context()
    with pytest.raises(CannotConnect):
        await Dialer(server.url.replace("ws://", "wss://"), {}, None, context).dial({}, PATIENCE)
    assert server.asked == []


@pytest.mark.parametrize(
    "proxy", ["http://{at}", "socks5://{at}", "nonsense://{at}", "http://a:secret@{at}/x", "http://%ff:b@{at}", "h:x"]
)
async def test_g12_a_proxy_that_does_not_connect_is_told_as_that(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """One of SOCKS wants a package that need not be there."""

    async def serve(peer: Peer) -> None:
        await peer.some()
        await peer.say(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    async with serving(serve) as server:
        monkeypatch.setenv("http_proxy", proxy.format(at=urlsplit(server.url).netloc))
        error = await refused("ws://mcp.example/ws")
    assert str(error) == "ws://mcp.example/ws cannot be reached: no connection through the proxy"
    assert error.may_pass


async def test_a_refusal_that_comes_through_a_proxy_is_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(peer: Peer) -> None:
        await peer.some()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\n")
        await peer.some()
        await peer.say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    async with serving(serve) as server:
        monkeypatch.setenv("http_proxy", urlsplit(server.url).netloc)
        error = await refused("ws://mcp.example/ws")
    assert str(error) == "ws://mcp.example/ws answered HTTP 404"


async def test_a_server_of_another_protocol_is_refused() -> None:
    from websockets.asyncio.server import serve

    async def idle(connection: object) -> None:
        await anyio.lowlevel.checkpoint()

    async with serve(idle, "127.0.0.1", 0) as other:
        error = await refused(f"ws://127.0.0.1:{other.sockets[0].getsockname()[1]}/")
    assert "does not speak the subprotocol mcp" in str(error)
    assert not error.may_pass
