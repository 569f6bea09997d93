"""Bytes become requests, whatever pieces they come in; nothing here has a socket."""

import tracemalloc
from typing import Any, cast

import pytest
from trunkline.gateway.http_exchange import Carrier, HTTPExchange
from trunkline.gateway.known_head import KnownHeads
from trunkline.gateway.request_reader import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    ChangeAsked,
    HeadTooLong,
    NotHTTP,
    RequestReader,
)

COMMON = {"type": "http", "root_path": "/root"}


def reader() -> RequestReader:
    return RequestReader(cast(Carrier, object()), COMMON, KnownHeads())


def read(at: RequestReader, *pieces: bytes) -> list[HTTPExchange]:
    """What is in the queue after these."""
    for piece in pieces:
        at.receive(piece)
        while at.unread:
            at.read()
    return at.queue


def told(exchange: HTTPExchange) -> tuple[Any, ...]:
    scope = exchange.scope
    return scope["method"], scope["path"], scope["raw_path"], scope["query_string"], exchange.body, exchange.is_whole


POST = b"POST /a%20b?c=d HTTP/1.1\r\nHost: h\r\nX-Y: z\r\nContent-Length: 4\r\n\r\nbody"
TOLD = ("POST", "/root/a b", b"/root/a%20b", b"c=d", b"body", True)


@pytest.mark.parametrize("size", [1, 5, len(POST), 3 * len(POST)])
def test_a_request_is_read_alike_in_pieces_of_any_size(size: int) -> None:
    came = POST * 3
    requests = read(reader(), *[came[start : start + size] for start in range(0, len(came), size)])
    assert [told(one) for one in requests] == [TOLD] * 3
    for one in requests:
        assert one.scope["headers"] == [(b"host", b"h"), (b"x-y", b"z"), (b"content-length", b"4")]
        assert one.scope["http_version"] == "1.1"
        assert one.scope["type"] == "http"


def test_a_target_may_be_a_whole_url_and_have_a_fragment() -> None:
    [request] = read(reader(), b"GET http://elsewhere/a?b#c HTTP/1.1\r\nHost: h\r\n\r\n")
    assert told(request) == ("GET", "/root/a", b"/root/a", b"b", b"", True)
    [request] = read(reader(), b"GET /a#c HTTP/1.1\r\nHost: h\r\n\r\n")
    assert told(request) == ("GET", "/root/a", b"/root/a", b"", b"", True)


@pytest.mark.parametrize("url", [b"http://h:1/a", b"http://user@h:1", b"HTTP://h:1?x", b"http://user@h:1/@c"])
@pytest.mark.parametrize("host", [b"Host: other\r\n", b"", b"HOST: h:1\r\nHost: other\r\n"])
def test_the_host_of_a_whole_url_is_the_one_that_counts(url: bytes, host: bytes) -> None:
    at = reader()
    [*_, request] = read(at, *[b"POST %b HTTP/1.1\r\nX: y\r\n%bContent-Length: 1\r\n\r\nz" % (url, host)] * 5)
    assert request.headers == {"host": "h:1", "x": "y"}


def test_headers_are_read_once_where_they_are_the_same_but_for_the_length() -> None:
    at = reader()
    [first, second, third] = read(at, POST, POST.replace(b"4", b"2").replace(b"body", b"bo"), POST.replace(b"z", b"y"))
    headers = first.headers
    assert headers["x-y"] == "z"
    assert headers.query == b"c=d"
    assert second.headers is headers
    assert third.headers is not headers


@pytest.mark.parametrize("body", [b"", b"content-length: 2\r\n"])
@pytest.mark.parametrize("headers", [1, 200])
def test_g10_of_a_large_head_that_was_answered_nothing_is_kept(headers: int, body: bytes) -> None:
    many = b"".join(b"x-%d: %b\r\n" % (number, b"a" * (100_000 // headers)) for number in range(headers))
    head = b"POST /%b HTTP/1.1\r\nhost: h\r\n%b%b\r\n" % (b"p" * 20_000, body, many)
    idle, known = [], KnownHeads()
    tracemalloc.start()
    try:
        for _ in range(20):
            at = RequestReader(cast(Carrier, object()), COMMON, known)
            [exchange] = read(at, head, b"{}" if body else b"")
            assert len(exchange.headers) == headers + 1
            at.newest = None
            at.queue.clear()
            idle.append(at)
        del exchange
        assert tracemalloc.get_traced_memory()[0] < 20 * 20_000
        for at in idle:
            [again] = read(at, b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
            assert again.headers == {"host": "h"}
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("head", "is_small"),
    [
        (b"Content-Length: 4\r\n", True),
        (b"Content-Length: 0\r\n", False),
        (b"Content-Length: 100000\r\n", False),
        (b"", False),
        (b"Content-Length: 4\r\nExpect: 100-continue\r\n", False),
        (b"Transfer-Encoding: chunked\r\n", False),
    ],
)
def test_a_small_body_is_one_that_is_on_its_way(head: bytes, is_small: bool) -> None:
    at = reader()
    [request] = read(at, b"POST / HTTP/1.1\r\nHost: h\r\n" + head + b"\r\n")
    assert at.has_small_body is is_small
    assert request.is_whole is (head in (b"", b"Content-Length: 0\r\n"))


@pytest.mark.parametrize("came", [b"nonsense\r\n\r\n", b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", b"\0"])
def test_what_is_no_http_is_told(came: bytes) -> None:
    at = reader()
    read(at, POST)
    with pytest.raises(NotHTTP):
        read(at, came)
    assert [told(one) for one in at.queue] == [TOLD]


def test_g10_a_head_that_is_too_long_is_told() -> None:
    at = reader()
    read(at, b"GET / HTTP/1.1\r\nX: ")
    with pytest.raises(HeadTooLong):
        read(at, b"y" * (MAX_HEAD_BYTES + 1))
    assert at.queue == []
    assert at.is_in_head


@pytest.mark.parametrize("size", [100, 1_000_000])
def test_g10_a_head_of_too_many_headers_is_told(size: int) -> None:
    head = b"GET / HTTP/1.1\r\n" + b"".join([b"X%d:\r\n" % number for number in range(MAX_HEADERS)])
    at = reader()
    [request] = read(at, head + b"\r\n")
    assert len(request.scope["headers"]) == MAX_HEADERS
    head += b"Y:\r\n\r\n"
    with pytest.raises(HeadTooLong):
        read(at, *[head[start : start + size] for start in range(0, len(head), size)])
    assert at.queue == [request]


WISH = b"GET /1 HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: %b\r\nContent-Length: 2\r\n\r\nno"


def test_a_wish_for_another_protocol_is_told_and_may_be_refused() -> None:
    at = reader()
    with pytest.raises(ChangeAsked) as asked:
        read(at, WISH % b"H2C" + POST)
    assert asked.value.protocol == b"h2c"
    assert at.queue == []
    at.without_wish()
    [first, second] = read(at, b"")
    assert told(first) == ("GET", "/root/1", b"/root/1", b"", b"no", True)
    assert first.scope["headers"] == [(b"host", b"h"), (b"connection", b"keep-alive"), (b"content-length", b"2")]
    assert told(second) == TOLD


def test_a_wish_for_another_protocol_may_be_granted() -> None:
    at = reader()
    request = b"GET /1 HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
    with pytest.raises(ChangeAsked) as asked:
        read(at, request + b"behind")
    assert asked.value.protocol == b"websocket"
    assert at.with_wish() == (request, b"behind")
