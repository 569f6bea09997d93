"""Whatever a server sends, h11 reads the same answer in it; of many who ask, each gets its own or learns of none."""

import asyncio
import random
import socket
import ssl
from itertools import pairwise
from typing import Any, cast

import h11
import pytest
from harness.raw_http import Hearer, Peer, serving
from trunkline.transports.upstream.http import HeaderBlock
from trunkline.transports.upstream.http1 import HTTP1Client, _Connection, _Request

pytestmark = pytest.mark.anyio

ROUNDS = 4_000
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;ext=1\r\nlo\r\n0\r\nTrailer: dropped\r\n\r\n",
    b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nhello",
    b"HTTP/1.1 404 \r\nConnection: close\r\n\r\nno",
]
BEFORE = [
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
    b"HTTP/1.1 102 P\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 199 \r\nConnection: close\r\n\r\n",
    b"\r\n",
]
LINES = (
    b"Content-Length: 5|Content-Length: 3|Content-Length: 05|Content-Length: +5|Content-Length: 5, 5|Content-Length:|"
    b"Content-Length : 5|Content-Length: 5\r\n 5|Transfer-Encoding: chunked|Transfer-Encoding: Chunked|"
    b"Transfer-Encoding: identity|Transfer-Encoding: gzip, chunked|Transfer-Encoding: xchunked|"
    b"Transfer-Encoding:\r\n chunked|Transfer-Encoding:|Connection: close|Connection: close, keep-alive|"
    b"Connection: upgrade\r\nUpgrade: x|X: a\r\n b|X: \0|X: a\rb|X: a\nY: b| X: y|: y|X|Content-Encoding: gzip"
).split(b"|")
BITS = b"\r\n|\n|\r| |\t|\0|0|1|;|:|,|\xff|HTTP/1.0|HTTP/1.1 200 OK\r\n|0\r\n\r\n|-|+".split(b"|")


def a_stream(draw: random.Random) -> bytes:
    answer = bytearray(draw.choice(ANSWERS))
    for _ in range(draw.choice([0, 0, 1, 2])):
        at = answer.index(b"\r\n") + 2
        answer[at:at] = draw.choice(LINES) + b"\r\n"
    for _ in range(draw.choice([0, 0, 1, 2])):
        at = draw.randrange(len(answer) + 1)
        answer[at : at + draw.choice([0, 0, 1, 3])] = draw.choice([*BITS, b"", bytes([draw.randrange(256)])])
    before = [draw.choice(BEFORE) for _ in range(draw.choice([0, 0, 0, 1, 2]))]
    return b"".join((*before, answer, *draw.choice([[], [], [], [draw.choice([*ANSWERS, *BITS])]])))


class Sink:
    """A transport that takes all."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.is_closed = False

    def get_extra_info(self, name: str) -> socket.socket:
        return self._connection

    def is_closing(self) -> bool:
        return self.is_closed

    def write(self, data: bytes) -> None:
        """Take it."""

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.is_closed = True


def ours(connected: socket.socket, pieces: list[bytes], *, ends: bool) -> tuple[tuple[int, bytes] | None, bool]:
    """The answer, if it is whole, and whether the connection is used again."""
    hearer, free = Hearer(), []
    connection = _Connection(free.append, lambda _: None)
    connection.connection_made(cast(Any, sink := Sink(connected)))
    connection.start(_Request(b"", b"", hearer, None))
    for piece in pieces:
        if not sink.is_closed:
            connection.data_received(piece)
    is_used_again = bool(free) and connection.is_usable
    if ends or sink.is_closed:
        connection.connection_lost(None)
    whole = hearer.over.done() and hearer.over.result() is None
    return (hearer.status, hearer.body) if whole else None, is_used_again


def theirs(stream: bytes, *, ends: bool) -> tuple[tuple[int, bytes] | None, bool]:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(stream)
    status, body = 0, b""
    try:
        while (event := cast(Any, connection.next_event())) is not h11.PAUSED:
            if event is h11.NEED_DATA:
                if not ends:
                    break
                connection.receive_data(b"")
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                is_open = connection.our_state is h11.DONE and connection.their_state is h11.DONE
                return (status, body), is_open and not connection.trailing_data[0].strip(b"\r\n")
    except h11.RemoteProtocolError:
        pass
    return None, False


async def test_no_two_readers_find_different_answers_in_the_same_bytes() -> None:
    draw, agreed = random.Random(20261130), 0
    with socket.socket() as connected:
        for _ in range(ROUNDS):
            stream, ends = a_stream(draw), draw.random() < 0.5
            found, again = ours(connected, [stream], ends=ends)
            expected, may_again = theirs(stream, ends=ends)
            if found is not None and expected is not None:
                assert found == expected, stream
                assert may_again or not again, stream
                agreed += 1
            cuts = sorted(draw.sample(range(len(stream) + 1), 3))
            pieces = [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)]) if start < end]
            assert ours(connected, pieces, ends=ends)[0] == found, (stream, cuts)
    assert agreed > ROUNDS / 5, "what is sent should often be an answer"


ASKERS, ASKED = 8, 60


async def answer(peer: Peer, token: bytes, draw: random.Random) -> None:
    """Answer with the token, in one of many ways, right or wrong. What comes behind an answer comes with its end."""
    body = b"<%b>" % token * draw.choice([1, 1, 1, 20_000])
    head, length = b"HTTP/1.1 200 OK\r\n", b"Content-Length: %d\r\n\r\n" % len(body)
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(body[at : at + 9_000]), body[at : at + 9_000]) for at in range(0, len(body), 9_000)
    )
    right = [
        head + length + body,
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nContent-Length: 3\r\n\r\n",
        head + b"Connection: close\r\n" + length + body,
        draw.choice(BEFORE) + head + length + body,
    ]
    match draw.randrange(7):
        case 0:
            text = draw.choice(right)
            await peer.say(text[: draw.randrange(len(text))])
            raise ConnectionAbortedError
        case 1:
            await peer.say(head + length + body + draw.choice([b"x", b"H", right[0].replace(token, b"wrong")]))
        case 2:
            await peer.say(head + b"\r\n" + body)
            raise ConnectionAbortedError
        case 3:
            await peer.say(head + b"Content-Encoding: gzip\r\n" + length + body)
        case _:
            text = draw.choice(right)
            cut = draw.randrange(len(text))
            await peer.say(text[:cut], text[cut:])


async def test_g1_whatever_a_server_does_each_of_many_gets_its_own_answer_or_learns_that_there_is_none() -> None:
    draw, came = random.Random(20261130), []

    async def serve(peer: Peer) -> None:
        own = random.Random(draw.random())
        while True:
            _, _, body = await peer.request()
            came.append(body[:8])
            await answer(peer, body[:8], own)

    async def ask(number: int) -> int:
        whole = 0
        for n in range(ASKED):
            token, hearer = b"%04d%04d" % (number, n), Hearer()
            cut = client.send("POST", HeaderBlock({}), token + b"x" * draw.choice([0, 10, 100_000]), hearer)
            if draw.random() < 0.1:
                await asyncio.sleep(0)
                cut()
            elif await hearer.outcome() is None:
                assert hearer.body.replace(b"<%b>" % token, b"") == b"" != hearer.body
                whole += 1
        return whole

    async with serving(serve) as server:
        client = HTTP1Client(server.url, ssl.create_default_context())
        whole = await asyncio.gather(*map(ask, range(ASKERS)))
        await client.close()
    assert len(set(came)) == len(came), "nothing is sent twice"
    assert sum(whole) > ASKERS * ASKED / 3
