"""A head that came before, on any connection, means what it meant then, however it comes; and nothing else does."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from harness.http_serving import GET, HEAD, Connected, echo, post, said, serving, talking
from trunkline.gateway import request_reader
from trunkline.gateway.http_connection import HTTPConnection
from trunkline.gateway.http_listening import HTTPListening
from trunkline.gateway.known_head import REPEATS, KnownHead, KnownHeads
from trunkline.mux.statistics import Statistics
from trunkline.transports.asgi import WholeRequest

pytestmark = pytest.mark.anyio

PATIENCE = 10.0


class Reached(HTTPListening):
    """Knows the connection that has come, so that what it reads at once can be chosen."""

    connection: HTTPConnection

    def __call__(self, *given: Any, **more: Any) -> HTTPConnection:
        self.connection = super().__call__(*given, **more)
        return self.connection


@asynccontextmanager
async def reached() -> AsyncIterator[tuple[HTTPConnection, asyncio.StreamReader]]:
    """A connection to `echo`, after requests with the head that is then known; and where its answers come."""
    listening = Reached(Statistics())
    async with serving(echo, listening) as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in (b"first", b"second", b"third"):
            writer.write(post(body))
            assert await said(reader) == b"POST /1 " + body
        yield listening.connection, reader
        writer.close()


FOLLOWING = post(b"what") + post(b"") + post(b"ever" * 3) + post(b"other", 2) + post(post(b"within")) + post(b"last")
ANSWERS = [b"what", b"", b"ever" * 3, b"other", post(b"within"), b"last"]


@pytest.mark.parametrize("size", [1, 7, 64, len(FOLLOWING)])
async def test_requests_are_understood_alike_in_pieces_of_any_size(size: int) -> None:
    async with reached() as (connection, reader):
        for start in range(0, len(FOLLOWING), size):
            connection.data_received(FOLLOWING[start : start + size])
        for answer in ANSWERS:
            assert await said(reader) == b"POST /%d " % (2 if answer == b"other" else 1) + answer


async def test_a_known_head_is_understood_alike_wherever_it_is_cut() -> None:
    async with reached() as (connection, reader):
        request = post(b"some")
        for cut in range(1, len(request)):
            connection.data_received(request[:cut])
            connection.data_received(request[cut:] + request[:cut])  # the next one begins in the same packet
            connection.data_received(request[cut:])
            assert await said(reader) == await said(reader) == b"POST /1 some"


@pytest.mark.parametrize(
    "length",
    [b"+4", b"-4", b"0x4", b"4,4", b"4 4", b"", b" ", b"4\n", b"four", b"\xb2", b"9" * 30, b"4\r\nContent-Length: 5"],
)
async def test_a_length_that_is_none_is_refused_as_in_a_first_request(length: bytes) -> None:
    async with reached() as (connection, reader):
        connection.data_received(post(b"once"))
        assert await said(reader) == b"POST /1 once"
        connection.data_received(HEAD.replace(b"%d\r\nX", b"%b\r\nX") % (1, length) + b"what" + post(b"behind"))
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nX: z\r\n\r\n",
        b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 004\r\nX: y\r\n\r\n",
        b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length:   4  \r\nX: y\r\n\r\n",
        b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nX: y\r\nExpect: 100-continue\r\n\r\n",
        b"\r\nPOST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nX: y\r\n\r\n",
    ],
)
async def test_another_head_is_read_anew_and_known_from_then_on(head: bytes) -> None:
    async with reached() as (connection, reader):
        for request in [head + b"what", post(b"some")] * 2 + [head + b"what"] * 3:
            connection.data_received(request)
            answer = await said(reader, past_continue=True)
            assert answer == b"POST /1 " + request[-4:]


async def test_who_says_that_it_leaves_is_answered_and_nothing_is_read_behind_it() -> None:
    async with reached() as (connection, reader):
        leaving = post(b"bye").replace(b"X: y", b"Connection: close")
        connection.data_received(leaving + leaving)
        assert (await reader.read()).count(b"POST /1 bye") == 1


async def test_many_with_a_known_head_are_answered_in_order() -> None:
    async with talking(echo) as (reader, writer):
        await exchange_many((reader, writer))


async def exchange_many(connected: Connected) -> None:
    reader, writer = connected
    writer.write(b"".join([post(b"%d" % number) + (GET % number) * (number % 7 == 0) for number in range(2000)]))
    for number in range(2000):
        assert await said(reader) == b"POST /1 %d" % number
        if number % 7 == 0:
            assert await said(reader) == b"GET /%d " % number


async def test_of_two_that_come_in_one_packet_neither_is_taken_for_the_other() -> None:
    async with reached() as (connection, reader):
        for _ in range(REPEATS + 1):
            connection.data_received(post(b"what", 2) + post(b"ever", 3))
            assert (await said(reader), await said(reader)) == (b"POST /2 what", b"POST /3 ever")
        connection.data_received(post(b"what", 2))
        assert await said(reader) == b"POST /2 what"


async def test_an_empty_line_behind_each_body_is_never_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """As old clients send one (RFC 9112, 2.2): what is counted of a head begins anew with each request."""
    monkeypatch.setattr(request_reader, "MAX_HEAD_BYTES", 20)
    async with reached() as (connection, reader):
        for number in range(20):
            connection.data_received(post(b"%d" % number) + b"\r\n")
            assert await said(reader) == b"POST /1 %d" % number


async def test_a_body_of_any_length_may_come_after_a_known_head() -> None:
    async with talking(echo) as (reader, writer):
        for size in (5, 100_000, 0, 3_000_000, 70_000, 1):
            body = b"x" * size
            writer.write(post(body) + post(b"next"))
            assert await said(reader) == b"POST /1 " + body
            assert await said(reader) == b"POST /1 next"


async def test_a_client_that_leaves_within_a_body_is_told_to_who_reads_it() -> None:
    told: asyncio.Queue[Any] = asyncio.Queue()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        if message["more_body"]:
            told.put_nowait(message["body"])
            while (message := await receive())["type"] != "http.disconnect":
                told.put_nowait(message["body"])
            told.put_nowait("left")
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async with talking(application) as (reader, writer):
        writer.write(post(b"ok"))
        assert await said(reader) == b""
        writer.write(post(b"x" * 300_000)[:-1])
        writer.write_eof()
        writer.close()
        came = b""
        while (part := await told.get()) != "left":
            came += part
        assert b"x" * len(came) == came != b""


async def tell(scope: Any, receive: Any, send: Any) -> None:
    """Answers with all that is told of a request, and changes it."""
    body, message = b"", {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    told = what_is_told(scope, body)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(told))]})
    await send({"type": "http.response.body", "body": told})


def what_is_told(scope: Any, body: bytes) -> bytes:
    told = repr([scope[key] for key in sorted(scope) if key not in ("client", "server")]).encode()
    scope["path"] = "/changed"
    scope["headers"].append((b"changed", b""))
    return told + body


def take(whole: WholeRequest) -> bool:
    """Takes all but what is longest."""
    if len(whole.body) > 100:
        return False
    whole.reply(200, [], what_is_told(whole.scope, whole.body))
    return True


STREAMS = 300

LINES = b"Host: h|X: y|x: Content-Length:|X-Content-Length: 3|Accept:|Expect: 100-continue|Upgrade: h2c".split(b"|")
ODD_LINES = [
    *b"Connection: close|Connection: keep-alive|Expect: 100-continue|Upgrade: h2c\r\nConnection: upgrade".split(b"|"),
    *b"Transfer-Encoding: chunked|Content-Length: 2|X: a\r\n b|X : y|X: a\rb|X: \xff".split(b"|"),
]
TARGETS = b"/|/a?q=1|http://h/x?y|/%41|*|//x|/a#b".split(b"|")
ODD_LENGTHS = b"+%d|-%d|0%d|000000%d| %d|%d |%d,|0x%d|1%d|%d\n|99999999%d|%d\r".split(b"|")
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
BETWEEN = [b"\r\n", b"\n", b"\r", b"x", GET % 1, CHUNKED]


def a_head(draw: random.Random) -> bytes:
    lines = [*draw.sample(LINES, draw.randrange(4))]
    if draw.random() < 0.7:
        lines.append(draw.choice([b"Content-Length: %d", b"content-LENGTH:%d"]))
    draw.shuffle(lines)
    method = draw.choice([b"POST", b"POST", b"GET", b"HEAD", b"DELETE"])
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, draw.choice(TARGETS)), *lines, b"", b""])


def has_length(head: bytes) -> bool:
    return b"%d" in head


def a_stream(draw: random.Random, head: bytes) -> list[bytes]:
    """Requests with that head, or nearly, and bodies that may look like one; in pieces."""
    stream, ends = b"", []
    for _ in range(draw.randrange(3, 10)):
        size = draw.choice([0, 4, 4, 4, 70, 400, 20_000]) if has_length(head) else 0
        one, length = draw.choice([head, head.replace(b"/", b"/b", 1)]), b"%d" % size
        if draw.random() < 0.1:
            length = draw.choice(ODD_LENGTHS).replace(b"%d", length)
        if draw.random() < 0.1:
            one = one[:-2] + draw.choice(ODD_LINES) + b"\r\n\r\n"
        if draw.random() < 0.05:
            at = draw.randrange(len(one))
            one = one[:at] + draw.choice([b"", b" ", b"\r", b"\n", b"\r\n", b"%"]) + one[at + draw.randrange(2) :]
        if draw.random() < 0.1:
            stream += draw.choice(BETWEEN)
        ends += [len(stream), len(stream + one) - 2 + len(length)]
        stream += one.replace(b"%d", length) + draw.choice([b"x" * size, (head.replace(b"%d", b"1") * size)[:size]])
    cuts = draw.choice([[], ends, draw.sample(ends, 3), [max(0, end - draw.randrange(4)) for end in ends]])
    return [stream[start:end] for start, end in pairwise(sorted({0, *cuts, len(stream)}))]


async def answers(listening: Reached, port: int, head: bytes, pieces: list[bytes]) -> bytes:
    """All that is answered to these pieces, behind requests with that head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(PATIENCE):
        for size in (1, 2, 3) if has_length(head) else (0, 0, 0):
            writer.write(head.replace(b"%d", b"%d" % size) + b"x" * size)
            await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            listening.connection.data_received(piece)
            for _ in range(5):  # tasks go on
                await asyncio.sleep(0)
        writer.write_eof()
        answered = await reader.read()
    writer.close()
    return re.sub(rb"\r\ndate: [^\r]*", b"", answered)


async def test_whatever_comes_is_answered_as_where_no_head_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = 0
    beginning_of = KnownHead.beginning_of

    def counted(head: KnownHead, data: bytes) -> Any:
        nonlocal found
        beginning = beginning_of(head, data)
        found += beginning is not None
        return beginning

    monkeypatch.setattr(KnownHead, "beginning_of", counted)
    listening = Reached(Statistics(), take)
    async with serving(tell, listening) as port:
        for seed in range(STREAMS):
            draw = random.Random(seed)
            head = a_head(draw)
            pieces = a_stream(draw, head)
            answered = await answers(listening, port, head, pieces)
            with monkeypatch.context() as nothing_known:
                nothing_known.setattr(KnownHeads, "of", lambda *_: None)
                nothing_known.setattr(KnownHeads, "learn", lambda *_: None)
                assert answered == await answers(listening, port, head, pieces), (seed, head, pieces)
    assert found > STREAMS / 2
