"""Whatever comes on a connection, h11 reads the same requests in it, or one of the two reads nothing more."""

import random
from itertools import pairwise
from typing import Any, cast

import h11
from trunkline.gateway.http_exchange import Carrier
from trunkline.gateway.known_head import KnownHeads
from trunkline.gateway.request_reader import ChangeAsked, HeadTooLong, NotHTTP, RequestReader

ROUNDS = 4_000
REQUESTS = [
    b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody",
    b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nT: v\r\n\r\n",
    b"POST /d HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    b"DELETE /e HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    b"PUT /f HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
    b"GET /g HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
]
LINES = (
    b"Content-Length: 4|Content-Length: 3|Content-Length: 04|Content-Length: +4|Content-Length: 4, 4|Content-Length:|"
    b"Content-Length: 0x4|Content-Length : 4|Content-Length:4\t |Content-Length: 4\r\n 4|Transfer-Encoding: chunked|"
    b"Transfer-Encoding:\tChunked |Transfer-Encoding: identity|Transfer-Encoding: chunked, identity|"
    b"Transfer-Encoding: gzip, chunked|Transfer-Encoding: xchunked|Transfer-Encoding: \x0bchunked|"
    b"Transfer-Encoding:\r\n chunked|Transfer-Encoding : chunked|Transfer_Encoding: chunked|"
    b"Transfer-Encoding: chunked;q=1|Transfer-Encoding:|Transfer-Encoding: chunked\r\nTransfer-Encoding: identity|"
    b"Connection: close|Connection: close, keep-alive|Connection: Content-Length|"
    b"X: a\r\n b|X: \0|X\0: 1|X: a\rb|X: a\nY: b| X: y|: y|X"
).split(b"|")
BITS = b"\r\n|\n|\r| |\t|\0|0|1|;|:|,|\xff|\x0b|HTTP/1.0|GET / HTTP/1.1\r\n|0\r\n\r\n|-|+|fffffffffffffff".split(b"|")

Read = tuple[bytes, bytes]
"""Method and body of a request that came whole."""


def a_stream(draw: random.Random) -> bytes:
    stream = b""
    for _ in range(draw.randrange(1, 4)):
        request = bytearray(draw.choice(REQUESTS))
        for _ in range(draw.choice([0, 0, 1, 2])):
            at = request.index(b"\r\n") + 2
            request[at:at] = draw.choice(LINES) + b"\r\n"
        for _ in range(draw.choice([0, 0, 1, 2])):
            at = draw.randrange(len(request) + 1)
            request[at : at + draw.choice([0, 0, 1, 3])] = draw.choice([*BITS, b"", bytes([draw.randrange(256)])])
        stream += request
    return stream


def ours(pieces: list[bytes]) -> list[Read]:
    reader = RequestReader(cast(Carrier, object()), {"root_path": ""}, KnownHeads())
    try:
        for piece in pieces:
            reader.receive(piece)
            while reader.unread:
                try:
                    reader.read()
                except ChangeAsked:
                    reader.without_wish()
    except (NotHTTP, HeadTooLong):
        pass
    read = []
    for exchange in reader.queue:
        if exchange.is_whole:
            read.append((exchange.scope["method"].encode(), exchange.body))
        if not exchange.is_kept:
            break
    return read


def theirs(stream: bytes) -> list[Read]:
    connection, read = h11.Connection(h11.SERVER), []
    connection.receive_data(stream)
    method, body = b"", b""
    try:
        while isinstance(event := cast(Any, connection.next_event()), (h11.Request, h11.Data, h11.EndOfMessage)):
            if isinstance(event, h11.Request):
                method, body = event.method, b""
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                read.append((method, body))
                connection.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
    except (h11.RemoteProtocolError, h11.LocalProtocolError):  # no HTTP, or it was the last one
        pass
    return read


def test_no_two_readers_find_different_requests_in_the_same_bytes() -> None:
    draw, whole, agreed = random.Random(20261130), 0, 0
    for _ in range(ROUNDS):
        stream = a_stream(draw)
        found, expected = ours([stream]), theirs(stream)
        both = min(len(found), len(expected))
        assert found[:both] == expected[:both], stream
        cuts = sorted(draw.sample(range(len(stream) + 1), 3))
        pieces = [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]
        assert ours(pieces) == found, (stream, cuts)
        whole += bool(found)
        agreed += found == expected
    assert whole > ROUNDS / 5, "what is sent should often be a request"
    assert agreed > ROUNDS / 2
