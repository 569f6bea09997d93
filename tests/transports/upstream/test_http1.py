"""The lean client on real sockets: what it sends, and what of an answer it takes, however that comes."""

import asyncio

import pytest
from harness.http1_client import CONTEXT, NONE, PLAIN, client_of, post
from harness.raw_http import PATIENCE, Hearer, Peer, always, saying
from trunkline.transports import portions
from trunkline.transports.upstream import http1
from trunkline.transports.upstream.http import MAX_HEAD_BYTES, HeaderBlock, Withheld
from trunkline.transports.upstream.http1 import HTTP1Client

pytestmark = pytest.mark.anyio

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;ext=1\r\nlo\r\n0\r\nTrailer: dropped\r\n\r\n"
)
INFORMED = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + PLAIN
EMPTY = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


async def test_a_request_arrives_as_it_was_given() -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async with client_of(always(EMPTY, seen=seen)) as (client, server):
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
    async with client_of(saying(text)) as (client, _):
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
    async with client_of(saying(b"HTTP/1.1 110 x\r\nContent-Length: 5\r\n\r\nhello" + PLAIN)) as (client, _):
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
    async with client_of(saying(PLAIN + b"HTTP/1.1 " + status + b"\r\n\r\n")) as (client, server):
        for n in range(1, 3):
            hearer = post(client)
            assert await hearer.outcome() is None
            assert (hearer.status, hearer.body) == (200, b"hello")
            assert server.connections == n


async def test_an_answer_without_length_ends_with_its_connection() -> None:
    async with client_of(saying(b"HTTP/1.0 200 OK\r\n\r\nhel", b"lo", ends=True)) as (client, server):
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


async def test_a_status_that_is_none_is_told_at_once() -> None:
    async with client_of(saying(EMPTY.replace(b"202", b"099"))) as (client, _):
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

    async with client_of(
        saying(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + length + b"\r\n" + body, ends=True)
    ) as (client, _):
        hearer = Measure()
        client.send("POST", NONE, b"{}", hearer)
        assert await hearer.outcome() is None
        assert hearer.body == body
        assert max(hearer.sizes) <= portions.PORTION_BYTES


@pytest.mark.parametrize("event", [b"data:1\n\n", b"data:1\r\r", b"id:1\r\n\r\n"])
async def test_g9_few_events_are_read_before_others_have_their_turn(event: bytes) -> None:
    body = event * 20_000

    class Count(Hearer):
        most = 0

        def came(self, chunk: bytes) -> None:
            self.most = max(self.most, len(chunk) // len(event))
            super().came(chunk)

    async with client_of(saying(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + body, ends=True)) as (
        client,
        _,
    ):
        hearer = Count()
        client.send("POST", NONE, b"{}", hearer)
        assert await hearer.outcome() is None
        assert hearer.body == body
        assert hearer.most <= max(portions.PORTION_ITEMS, portions.SMALL // len(event))
