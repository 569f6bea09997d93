"""Requests through a real forward proxy, which a test plays on a socket."""

import asyncio
import gzip
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from harness.certificates import certificate
from harness.raw_http import Hearer, Peer, RawServer, Serve, always, saying, serving
from trunkline.transports.portions import MAX_LINES, PORTION_BYTES
from trunkline.transports.upstream.http import ExchangeBroken, HeaderBlock, Withheld
from trunkline.transports.upstream.http_proxied import ProxiedClient

pytestmark = pytest.mark.anyio

CONTEXT = ssl.create_default_context()
FAR = "http://mcp.example/a%2Fb?x=1"


@asynccontextmanager
async def client_of(serve: Serve) -> AsyncIterator[tuple[ProxiedClient, RawServer]]:
    async with serving(serve) as proxy:
        client = ProxiedClient(FAR, CONTEXT, proxy.url.removesuffix("/mcp"))
        try:
            yield client, proxy
        finally:
            await client.close()


async def test_the_proxy_is_asked_for_the_whole_url() -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async with client_of(always(b"HTTP/1.1 200 OK\r\nX-One: 1\r\nContent-Length: 2\r\n\r\nhi", seen=seen)) as (
        client,
        _,
    ):
        for method, body in (("POST", b"{}"), ("GET", b"")):
            hearer = Hearer()
            client.send(method, HeaderBlock({"A": "b"}), body, hearer)
            assert await hearer.outcome() is None
            assert (hearer.status, hearer.headers["x-one"], hearer.body) == (200, "1", b"hi")
    assert [(start, headers["host"], headers["a"], body) for start, headers, body in seen] == [
        (f"POST {FAR} HTTP/1.1", "mcp.example", "b", b"{}"),
        (f"GET {FAR} HTTP/1.1", "mcp.example", "b", b""),
    ]
    assert seen[0][1]["content-type"] == "application/json"


async def test_a_certificate_behind_the_proxy_is_told_as_any_other(tmp_path: Path) -> None:
    """The proxy is there: who is told that it is not looks in the wrong place."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with suppress(ssl.SSLError, ConnectionError):
            await peer.secure(shown.showing())

    shown = certificate(tmp_path)
    async with serving(serve) as proxy:
        client = ProxiedClient("https://mcp.example/", CONTEXT, proxy.url.removesuffix("/mcp"))
        hearer = Hearer()
        client.send("POST", HeaderBlock({}), b"{}", hearer)
        error = await hearer.outcome()
        await client.close()
    assert error is not None
    assert (str(error), error.sent) == ("its certificate is not trusted here", False)


async def test_a_user_and_a_password_in_the_url_are_nothing_that_a_proxy_is_told() -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async with serving(always(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", seen=seen)) as proxy:
        client = ProxiedClient(FAR.replace("//", "//user:s3cret@"), CONTEXT, proxy.url.removesuffix("/mcp"))
        for target in (None, "/message?session_id=a%2Fb"):
            hearer = Hearer()
            client.send("POST", HeaderBlock({"Authorization": "Bearer x"}), b"{}", hearer, target=target)
            assert await hearer.outcome() is None
        await client.close()
    assert [start for start, _, _ in seen] == [
        f"POST {FAR} HTTP/1.1",
        "POST http://mcp.example/message?session_id=a%2Fb HTTP/1.1",
    ]
    assert [headers["authorization"] for _, headers, _ in seen] == ["Bearer x"] * 2


async def test_another_target_of_the_server_is_asked_of_the_same_proxy() -> None:
    seen: list[str] = []

    async def serve(peer: Peer) -> None:
        start, _, _ = await peer.request()
        seen.append(start)
        await peer.say(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")

    async with client_of(serve) as (client, _):
        hearer = Hearer()
        client.send("POST", HeaderBlock({}), b"{}", hearer, target="/message?session_id=a%2Fb")
        assert await hearer.outcome() is None
    assert seen == ["POST http://mcp.example/message?session_id=a%2Fb HTTP/1.1"]


async def test_g7_a_request_whose_fence_closed_while_it_waited_for_its_connection_is_not_sent() -> None:
    seen: list[bytes] = []

    async def serve(peer: Peer) -> None:
        while True:
            seen.append((await peer.request())[2])
            await peer.say(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")

    async with client_of(serve) as (client, _):
        for may, body in ((False, b"0"), (True, b"1"), (False, b"2"), (True, b"3")):
            hearer = Hearer()
            client.send("POST", HeaderBlock({}), body, hearer, fence=lambda may=may: may)  # type: ignore[misc]
            error = await hearer.outcome()
            assert error is None if may else isinstance(error, Withheld)
    assert seen == [b"1", b"3"]


async def test_an_exchange_that_breaks_may_have_been_sent() -> None:
    async with client_of(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhi", ends=True)) as (client, _):
        hearer = Hearer()
        client.send("POST", HeaderBlock({}), b"{}", hearer)
        error = await hearer.outcome()
        assert isinstance(error, ExchangeBroken)
        assert error.sent


async def test_g9_an_answer_that_is_encoded_unasked_breaks_before_anything_is_made_of_it() -> None:
    asked: list[str] = []
    bomb = gzip.compress(b" " * 50_000_000)

    async def serve(peer: Peer) -> None:
        _, headers, _ = await peer.request()
        asked.append(headers["accept-encoding"])
        await peer.say(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
            % len(bomb),
            bomb,
        )

    async with client_of(serve) as (client, _):
        hearer = Hearer()
        client.send("POST", HeaderBlock({}), b"{}", hearer)
        error = await hearer.outcome()
        assert error is not None
        assert error.sent
        assert "encoded" in str(error)
        assert (hearer.status, hearer.body) == (0, b"")
    assert asked == ["identity"]


async def test_a_proxy_that_is_not_there_got_nothing() -> None:
    async with client_of(lambda peer: peer.closed()) as (_, proxy):
        url = proxy.url
    client = ProxiedClient(FAR, CONTEXT, url)
    hearer = Hearer()
    client.send("POST", HeaderBlock({}), b"{}", hearer)
    error = await hearer.outcome()
    await client.close()
    assert error is not None
    assert not error.sent


async def test_where_no_thread_can_be_made_that_asks_for_the_proxy_the_request_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    client, hearer = ProxiedClient(FAR, CONTEXT, "http://localhost:9"), Hearer()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        client.send("POST", HeaderBlock({}), b"{}", hearer)
        error = await hearer.outcome()
    await client.close()
    assert error is not None
    assert [record.getMessage() for record in caplog.records] == ["an exchange through the proxy failed"]


async def test_a_cut_exchange_tells_nothing() -> None:
    class Cutting(Hearer):
        def came(self, chunk: bytes) -> None:
            super().came(chunk)
            cut()

    async with client_of(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhi")) as (client, _):
        hearer = Cutting()
        cut = client.send("POST", HeaderBlock({}), b"{}", hearer)
        await hearer.some.wait()
        await client.close()
        assert not hearer.over.done()


class Turns(Hearer):
    """Notes in what pieces the body comes, and whether others had their turn between two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.without_a_turn = 0
        self._waits = False

    def came(self, chunk: bytes) -> None:
        self.sizes.append(len(chunk))
        self.without_a_turn += self._waits
        self._waits = True
        asyncio.get_running_loop().call_soon(self._turn)
        super().came(chunk)

    def _turn(self) -> None:
        self._waits = False


@pytest.mark.parametrize("event", [b": comment\n", b"data:1\n\n", b"id:1\r\r"])
async def test_g10_others_have_their_turn_between_portions_of_an_answer(event: bytes) -> None:
    body = event * 20_000

    async with client_of(saying(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + body, ends=True)) as (
        client,
        _,
    ):
        hearer = Turns()
        client.send("POST", HeaderBlock({}), b"{}", hearer)
        assert await hearer.outcome() is None
        assert hearer.body == body
        assert max(hearer.sizes) <= min(PORTION_BYTES, MAX_LINES * len(event))
        assert not hearer.without_a_turn


async def test_an_answer_that_is_no_stream_is_read_by_its_size_and_not_by_its_lines() -> None:
    """Each portion costs a turn of the event loop."""
    line = b"1,\n"
    body = line * 20_000

    async with client_of(
        saying(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body),
            body,
            ends=True,
        )
    ) as (client, _):
        hearer = Turns()
        client.send("POST", HeaderBlock({}), b"{}", hearer)
        assert await hearer.outcome() is None
        assert hearer.body == body
        assert MAX_LINES * len(line) < max(hearer.sizes) <= PORTION_BYTES
        assert not hearer.without_a_turn
