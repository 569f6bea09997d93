"""The lean client on real sockets: framing, reuse of connections, and answers that are none."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from harness.raw_http import PATIENCE, Hearer, Peer, RawServer, Serve, serving
from trunkline.transports import portions
from trunkline.transports.upstream import http1
from trunkline.transports.upstream.http import MAX_HEAD_BYTES, HeaderBlock, Withheld
from trunkline.transports.upstream.http1 import HTTP1Client

pytestmark = pytest.mark.anyio

NONE = HeaderBlock({})
CONTEXT = ssl.create_default_context()
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;ext=1\r\nlo\r\n0\r\nTrailer: dropped\r\n\r\n"
)
INFORMED = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + PLAIN
EMPTY = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


@asynccontextmanager
async def client_of(serve: Serve) -> AsyncIterator[tuple[HTTP1Client, RawServer]]:
    async with serving(serve) as server:
        client = HTTP1Client(server.url, CONTEXT)
        try:
            yield client, server
        finally:
            await client.close()


def post(client: HTTP1Client, body: bytes = b"{}", headers: HeaderBlock = NONE) -> Hearer:
    hearer = Hearer()
    client.send("POST", headers, body, hearer)
    return hearer


async def test_a_request_arrives_as_it_was_given() -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async def serve(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            await peer.say(EMPTY)

    async with client_of(serve) as (client, server):
        for method in ("POST", "GET", "DELETE"):
            hearer = Hearer()
            client.send(
                method, HeaderBlock({"X-One": "1", "X-Two": "caf\xe9"}), b"{}" if method == "POST" else b"", hearer
            )
            assert await hearer.outcome() is None
            assert hearer.status == 202
    host = server.url.split("/")[2]
    assert [(start, headers.get("content-type"), body) for start, headers, body in seen] == [
        ("POST /mcp HTTP/1.1", "application/json", b"{}"),
        ("GET /mcp HTTP/1.1", None, b""),
        ("DELETE /mcp HTTP/1.1", None, b""),
    ]
    assert all(headers["host"] == host and headers["x-one"] == "1" for _, headers, _ in seen)
    assert all(headers["x-two"] == "caf\xe9" for _, headers, _ in seen)
    assert server.connections == 1


async def test_g7_a_request_whose_fence_closed_while_it_waited_for_its_connection_is_not_sent() -> None:
    seen: list[bytes] = []

    async def serve(peer: Peer) -> None:
        while True:
            seen.append((await peer.request())[2])
            await peer.say(EMPTY)

    async with client_of(serve) as (client, server):
        may, hearers = True, [Hearer() for _ in range(3)]
        client.send("POST", NONE, b"0", hearers[0], fence=lambda: may)
        may = False
        client.send("POST", NONE, b"1", hearers[1], fence=lambda: may)
        for hearer in hearers[:2]:
            error = await hearer.outcome()
            assert isinstance(error, Withheld)
            assert not error.sent
        may = True
        client.send("POST", NONE, b"2", hearers[2], fence=lambda: may)
        assert await hearers[2].outcome() is None
    assert seen == [b"2"]
    assert server.connections == 1, "what was opened for the first one serves the last"


async def test_another_target_of_the_server_is_on_the_same_connections() -> None:
    seen: list[tuple[str, str]] = []

    async def serve(peer: Peer) -> None:
        while True:
            start, headers, _ = await peer.request()
            seen.append((start, headers["host"]))
            await peer.say(EMPTY)

    async with client_of(serve) as (client, server):
        for target in ("/message?session_id=1", None):
            hearer = Hearer()
            client.send("POST", NONE, b"{}", hearer, target=target)
            assert await hearer.outcome() is None
    host = server.url.split("/")[2]
    assert seen == [("POST /message?session_id=1 HTTP/1.1", host), ("POST /mcp HTTP/1.1", host)]
    assert server.connections == 1


@pytest.mark.parametrize("size", [0, 1, http1.SMALL_BODY, http1.SMALL_BODY + 1, 4 * 1024 * 1024])
async def test_a_body_of_any_size_arrives(size: int) -> None:
    async def serve(peer: Peer) -> None:
        _, _, body = await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)
        await peer.closed()

    body = bytes(range(256)) * (size // 256 + 1)
    async with client_of(serve) as (client, _):
        hearer = post(client, body[:size])
        assert await hearer.outcome() is None
        assert hearer.body == body[:size]


@pytest.fixture(params=[0, http1.PARSED_BODY], ids=["unparsed", "parsed"])
def _parsed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much of a body is parsed in any case: nothing but what comes first, or all of a short one."""
    monkeypatch.setattr(http1, "PARSED_BODY", request.param)


@pytest.mark.usefixtures("_parsed")
@pytest.mark.parametrize("text", [PLAIN, CHUNKED, INFORMED, EMPTY, NO_CONTENT])
async def test_an_answer_may_be_cut_into_pieces_anywhere(text: bytes) -> None:
    cuts = iter([*range(1, len(text)), 0])

    async def serve(peer: Peer) -> None:
        for cut in cuts:
            await peer.request()
            await peer.say(*(bytes([byte]) for byte in text) if not cut else (text[:cut], text[cut:]))

    async with client_of(serve) as (client, server):
        for _ in range(len(text)):
            hearer = post(client)
            assert await hearer.outcome() is None
            assert hearer.status in (200, 202, 204)
            assert hearer.body == (b"hello" if hearer.status == 200 else b"")
            assert "trailer" not in hearer.headers
            assert "link" not in hearer.headers
    assert server.connections == 1


@pytest.mark.usefixtures("_parsed")
@pytest.mark.parametrize("text", [PLAIN, CHUNKED, INFORMED])
async def test_an_answer_that_is_cut_off_anywhere_breaks(text: bytes) -> None:
    cuts = iter(range(len(text)))

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(text[: next(cuts)])

    async with client_of(serve) as (client, server):
        for _ in range(len(text)):
            error = await post(client).outcome()
            assert error is not None
            assert error.sent
    assert server.connections == len(text)


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nBad Name: 1\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_HEAD_BYTES + b"\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(8000)) + b"Content-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello",
        b"SSH-2.0-x\r\n",
        b"\0" * 100,
    ],
    ids=lambda text: text[17:50].decode("latin-1").replace("\r\n", " "),
)
async def test_what_is_no_clear_answer_breaks(text: bytes) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(text)
        await peer.closed()

    async with client_of(serve) as (client, _):
        hearer = post(client)
        error = await hearer.outcome()
        assert error is not None
        assert error.sent
        assert hearer.body == b""


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"0\r\nX: ", b"y" * 10_000),
        (b"0\r\n", b"X: y\r\n" * 1_000),
        (b"2;x=", b"y" * 10_000),
    ],
    ids=["a trailer", "trailers", "an extension"],
)
async def test_g10_what_stands_around_a_body_has_a_bound(begin: bytes, more: bytes) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n" + begin)
        for _ in range(100):
            await peer.say(more)
        await peer.closed()

    async with client_of(serve) as (client, _):
        hearer = post(client)
        assert await hearer.outcome() is not None
        assert hearer.body == b"ok"


async def test_what_stands_around_a_body_is_no_matter_while_that_goes_on() -> None:
    count = 2 * MAX_HEAD_BYTES // 1_000

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(count):
            await peer.say(b"2;x=" + b"y" * 1_000 + b"\r\n", b"ok\r\n")
        await peer.say(b"0\r\n\r\n")
        await peer.closed()

    async with client_of(serve) as (client, _):
        hearer = post(client)
        assert await hearer.outcome() is None
        assert hearer.body == b"ok" * count


async def test_an_informational_answer_with_a_body_is_none() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 110 x\r\nContent-Length: 5\r\n\r\nhello" + PLAIN)
        await peer.closed()

    async with client_of(serve) as (client, _):
        assert str(await post(client).outcome()) == http1.NO_HTTP


async def test_endless_informational_answers_break() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        for _ in range(4000):
            await peer.say(b"HTTP/1.1 100 Continue\r\n\r\n")
        await peer.closed()

    async with client_of(serve) as (client, _):
        assert await post(client).outcome() is not None


@pytest.mark.usefixtures("_parsed")
@pytest.mark.parametrize("status", [b"101 x\r\nUpgrade: x\r\nConnection: upgrade", b"102 Processing", b"099 x"])
async def test_an_answer_is_what_it_was_whatever_comes_behind_it(status: bytes) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(PLAIN + b"HTTP/1.1 " + status + b"\r\n\r\n")
        await peer.closed()

    async with client_of(serve) as (client, server):
        for n in range(1, 3):
            hearer = post(client)
            assert await hearer.outcome() is None
            assert (hearer.status, hearer.body) == (200, b"hello")
            assert server.connections == n


async def test_an_answer_without_length_ends_with_its_connection() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.0 200 OK\r\n\r\nhel", b"lo")

    async with client_of(serve) as (client, server):
        for _ in range(2):
            hearer = post(client)
            assert await hearer.outcome() is None
            assert hearer.body == b"hello"
    assert server.connections == 2


@pytest.mark.parametrize(
    "pieces",
    [
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n", b"6\r\nsecond\r\n", b"4\r\nlast\r\n0\r\n\r\n"),
        (b"Content-Length: 15\r\n\r\nfirst", b"second", b"last"),
    ],
    ids=["chunked", "of known length"],
)
@pytest.mark.usefixtures("_parsed")
async def test_the_body_comes_as_it_is_sent(pieces: tuple[bytes, ...]) -> None:
    go_on = asyncio.Event()

    async def serve(peer: Peer) -> None:
        for _ in range(2):
            await peer.request()
            await peer.say(b"HTTP/1.1 200 OK\r\n" + pieces[0])
            for piece in pieces[1:]:
                async with asyncio.timeout(PATIENCE):
                    await go_on.wait()
                go_on.clear()
                await peer.say(piece)

    async with client_of(serve) as (client, server):
        for _ in range(2):
            hearer = post(client)
            for so_far in (b"first", b"firstsecond"):
                async with asyncio.timeout(PATIENCE):
                    await hearer.some.wait()
                assert hearer.body == so_far
                hearer.some.clear()
                go_on.set()
            assert await hearer.outcome() is None
            assert hearer.body == b"firstsecondlast"
        assert server.connections == 1


@pytest.mark.usefixtures("_parsed")
async def test_a_body_that_is_cut_while_it_comes_is_told_no_further() -> None:
    hearers: list[Hearer] = []
    was_cut = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(PLAIN[:-3])
        async with asyncio.timeout(PATIENCE):
            await hearers[-1].some.wait()
        await peer.say(PLAIN[-3:])
        await peer.closed()

    class Cutting(Hearer):
        def came(self, chunk: bytes) -> None:
            super().came(chunk)
            if self.body == b"hello":
                cut()
                was_cut.set()

    async with client_of(serve) as (client, server):
        hearers.append(Cutting())
        cut = client.send("POST", NONE, b"{}", hearers[0])
        async with asyncio.timeout(PATIENCE):
            await was_cut.wait()
        hearers.append(post(client))
        assert await hearers[1].outcome() is None
        assert not hearers[0].over.done()
        assert server.connections == 2


@pytest.mark.parametrize(
    "text",
    [
        PLAIN + PLAIN,
        PLAIN + b"x",
        PLAIN.replace(b"200 OK\r\n", b"200 OK\r\nConnection: close\r\n"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
    ids=["a second answer", "a byte too much", "close", "HTTP/1.0"],
)
@pytest.mark.usefixtures("_parsed")
@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_connection_that_is_not_clean_is_not_used_again(pieces: int, text: bytes) -> None:
    middle = text.index(b"hello") + 2
    hearers: list[Hearer] = []

    async def serve(peer: Peer) -> None:
        await peer.request()
        if pieces == 1:
            await peer.say(text)
        else:
            await peer.say(text[:middle])
            async with asyncio.timeout(PATIENCE):
                await hearers[-1].some.wait()
            await peer.say(text[middle:])
        await peer.closed()

    async with client_of(serve) as (client, server):
        for n in range(1, 4):
            hearers.append(post(client))
            assert await hearers[-1].outcome() is None
            assert hearers[-1].body == b"hello"
            assert server.connections == n


async def test_what_comes_unasked_on_a_kept_connection_is_nobodys_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "KEEP_ALIVE_SECONDS", 2 * PATIENCE)  # else it would be closed for being idle
    speak, spoken = asyncio.Event(), asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(PLAIN)
        await speak.wait()
        await peer.say(PLAIN.replace(b"hello", b"wrong"))
        await peer.closed()
        spoken.set()

    async with client_of(serve) as (client, server):
        assert await post(client).outcome() is None
        speak.set()
        async with asyncio.timeout(PATIENCE):
            await spoken.wait()
        hearer = post(client)
        assert await hearer.outcome() is None
        assert hearer.body == b"hello"
    assert server.connections == 2


async def test_an_answer_before_the_request_was_read_ends_the_connection() -> None:
    async def serve(peer: Peer) -> None:
        await peer.say(PLAIN)
        await peer.closed()

    async with client_of(serve) as (client, server):
        hearer = post(client, b"x" * 64 * 1024 * 1024)
        error = await hearer.outcome()
        assert error is None or error.sent
        await post(client).outcome()
    assert server.connections == 2


async def test_requests_at_once_have_connections_of_their_own_and_share_them_later() -> None:
    arrived = asyncio.Barrier(5)

    async def serve(peer: Peer) -> None:
        while True:
            _, _, body = await peer.request()
            if not body.startswith(b"later"):
                await arrived.wait()
            await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)

    async with client_of(serve) as (client, server):
        hearers = [post(client, b"%d" % n) for n in range(5)]
        assert [await hearer.outcome() for hearer in hearers] == [None] * 5
        assert [hearer.body for hearer in hearers] == [b"%d" % n for n in range(5)]
        for n in range(10):
            later = post(client, b"later%d" % n)
            assert await later.outcome() is None
            assert later.body == b"later%d" % n
    assert server.connections == 5


async def test_a_kept_connection_is_dropped_when_it_was_idle_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "KEEP_ALIVE_SECONDS", 0.05)
    closed = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(PLAIN)
        await peer.closed()
        closed.set()

    async with client_of(serve) as (client, _):
        assert await post(client).outcome() is None
        async with asyncio.timeout(PATIENCE):
            await closed.wait()


async def test_g9_a_server_that_vanished_without_a_word_is_noticed() -> None:
    answering = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        answering.set()
        await peer.closed()

    async with client_of(serve) as (client, _):
        post(client)
        await asyncio.wait_for(answering.wait(), PATIENCE)
        (connection,) = client._open
        used = connection._transport.get_extra_info("socket")
        assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        probes = {name: used.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in http1.PROBED}
        assert probes == http1.PROBED
        assert probes["TCP_KEEPIDLE"] + probes["TCP_KEEPINTVL"] * probes["TCP_KEEPCNT"] <= 120


async def test_a_server_that_is_not_there_got_nothing() -> None:
    async with serving(lambda peer: peer.closed()) as server:
        url = server.url
    client = HTTP1Client(url, CONTEXT)
    error = await post(client).outcome()
    await client.close()
    assert error is not None
    assert not error.sent
    assert str(error) == "Connection refused"


async def test_a_server_that_does_not_speak_tls_got_nothing() -> None:
    async def serve(peer: Peer) -> None:
        await peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await peer.closed()

    async with serving(serve) as server:
        client = HTTP1Client(server.url.replace("http:", "https:"), CONTEXT)
        error = await post(client).outcome()
        await client.close()
    assert error is not None
    assert not error.sent
    assert "127.0.0.1" not in str(error)


async def test_a_connection_that_does_not_come_about_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "CONNECT_SECONDS", 0.05)
    async with serving(lambda peer: peer.closed()) as server:
        client = HTTP1Client(server.url.replace("http:", "https:"), CONTEXT)
        error = await post(client).outcome()
        await client.close()
    assert error is not None
    assert not error.sent


async def test_where_no_thread_can_be_made_that_asks_for_a_host_the_request_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    client = HTTP1Client("http://localhost:9/mcp", CONTEXT)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        error = await post(client).outcome()
    await client.close()
    assert error is not None
    assert not error.sent
    assert [record.getMessage() for record in caplog.records] == ["no connection could be opened"]


async def test_a_cut_exchange_tells_nothing_and_closes_its_connection() -> None:
    came, closed = asyncio.Event(), asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        came.set()
        await peer.closed()
        closed.set()

    async with client_of(serve) as (client, _):
        hearer = Hearer()
        cut = client.send("POST", NONE, b"{}", hearer)
        async with asyncio.timeout(PATIENCE):
            await came.wait()
            cut()
            await closed.wait()
        assert not hearer.over.done()


async def test_a_cut_while_connecting_sends_nothing() -> None:
    seen: list[bytes] = []

    async def serve(peer: Peer) -> None:
        _, _, body = await peer.request()
        seen.append(body)
        await peer.say(PLAIN)

    async with client_of(serve) as (client, _):
        hearer = Hearer()
        client.send("POST", NONE, b"never", hearer)()
        await post(client).outcome()
        assert seen == [b"{}"]
        assert not hearer.over.done()


async def test_a_late_cut_does_not_touch_the_next_request_on_the_connection() -> None:
    second = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(PLAIN)
        await peer.request()
        second.set()
        await peer.say(PLAIN)
        await peer.closed()

    async with client_of(serve) as (client, server):
        first = Hearer()
        cut = client.send("POST", NONE, b"{}", first)
        assert await first.outcome() is None
        next_one = post(client)
        async with asyncio.timeout(PATIENCE):
            await second.wait()
        cut()
        assert await next_one.outcome() is None
    assert server.connections == 1


async def test_closing_breaks_what_is_under_way() -> None:
    came = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        came.set()
        await peer.closed()

    async with client_of(serve) as (client, _):
        hearer = post(client)
        async with asyncio.timeout(PATIENCE):
            await came.wait()
        connecting = post(client)
        await client.close()
        assert await hearer.outcome() is not None
        error = await connecting.outcome()
        assert error is not None
        assert not error.sent


async def test_what_is_asked_after_the_end_is_answered_and_keeps_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "KEEP_ALIVE_SECONDS", 2 * PATIENCE)
    closed = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(PLAIN)
        await peer.closed()
        closed.set()

    async with client_of(serve) as (client, _):
        await client.close()
        assert await post(client).outcome() is None
        async with asyncio.timeout(PATIENCE):
            await closed.wait()


async def test_a_status_that_is_none_is_told_at_once() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(EMPTY.replace(b"202", b"099"))
        await peer.closed()

    async with client_of(serve) as (client, _):
        hearer = post(client)
        error = await hearer.outcome()
        assert error is not None
        assert error.sent
        assert not hearer.status


@pytest.mark.parametrize(
    "url", ["ftp://x/", "http://", "x", "http:///mcp", "http://a..b/", f"http://{'x' * 64}.example/"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        HTTP1Client(url, CONTEXT)


@pytest.mark.parametrize("seconds", [-1.0, PATIENCE])
async def test_an_answer_that_nobody_asked_for_behind_a_long_one_is_nobodys(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one portion ends with the answer, what is behind it was there before it could be another's."""
    monkeypatch.setattr(portions, "TURN_SECONDS", seconds)
    head, end = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n"
    size = portions.PORTION_BYTES - len(head) - len(b"%x\r\n\r\n" % portions.PORTION_BYTES) - len(end)
    long = head + b"%04x\r\n%b\r\n" % (size, b"x" * size) + end
    assert len(long) == portions.PORTION_BYTES

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(long + PLAIN.replace(b"hello", b"wrong"))
        await peer.request()
        await peer.say(PLAIN)

    async with client_of(serve) as (client, server):
        first = post(client)
        assert await first.outcome() is None
        assert first.body == b"x" * size
        server._serve = answer_plainly
        second = post(client)
        assert await second.outcome() is None
        assert second.body == b"hello"
        assert server.connections == 2


async def answer_plainly(peer: Peer) -> None:
    await peer.request()
    await peer.say(PLAIN)


@pytest.mark.parametrize("size", [1_000, 1_000_000])
async def test_an_answer_is_whole_however_its_reading_is_spread_over_turns(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portions, "TURN_SECONDS", -1.0)
    body = b"".join([b"%09d " % n for n in range(size // 10)])

    async def known(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body)
        await peer.request()
        chunks = [b"%x\r\n%b\r\n" % (len(body[at : at + 7_000]), body[at : at + 7_000]) for at in range(0, size, 7_000)]
        await peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(chunks) + b"0\r\n\r\n")
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\n" + body)

    async with client_of(known) as (client, server):
        for _ in range(3):
            hearer = post(client)
            assert await hearer.outcome() is None
            assert hearer.body == body
        assert server.connections == 1


class Measure(Hearer):
    """Notes in what pieces the body comes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def came(self, chunk: bytes) -> None:
        self.sizes.append(len(chunk))
        super().came(chunk)


@pytest.mark.parametrize("length", [b"Content-Length: 2000000\r\n", b""], ids=["known", "unknown"])
async def test_g10_events_come_in_portions_whether_the_length_of_their_stream_is_known_or_not(length: bytes) -> None:
    """A piece of a body costs nothing, but one of a stream may hold many thousand events."""
    body = b": comment\n" * 200_000

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + length + b"\r\n" + body)

    async with client_of(serve) as (client, _):
        hearer = Measure()
        client.send("POST", NONE, b"{}", hearer)
        assert await hearer.outcome() is None
        assert hearer.body == body
        assert max(hearer.sizes) <= portions.PORTION_BYTES


@pytest.mark.parametrize("event", [b"data:1\n\n", b"data:1\r\r", b"id:1\r\n\r\n"])
async def test_g9_few_events_are_read_before_others_have_their_turn(event: bytes) -> None:
    body = event * 20_000

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + body)

    class Count(Hearer):
        most = 0

        def came(self, chunk: bytes) -> None:
            self.most = max(self.most, len(chunk) // len(event))
            super().came(chunk)

    async with client_of(serve) as (client, _):
        hearer = Count()
        client.send("POST", NONE, b"{}", hearer)
        assert await hearer.outcome() is None
        assert hearer.body == body
        assert hearer.most <= max(portions.PORTION_ITEMS, portions.SMALL // len(event))
