"""A head that came before, on any connection, means what it meant then, however it comes; and nothing else does."""

import asyncio
import gc
import random
import re
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, cast

import pytest
from harness.http_serving import GET, Connected, echo, said, serving, talking
from trunkline.gateway import known_head, request_reader
from trunkline.gateway.http_connection import HTTPConnection
from trunkline.gateway.http_exchange import Carrier
from trunkline.gateway.http_listening import HTTPListening
from trunkline.gateway.known_head import MAX_KNOWN_BYTES, REPEATS, HeadBytes, KnownHead, KnownHeads, head_of
from trunkline.gateway.request_reader import RequestReader
from trunkline.mux.statistics import Statistics
from trunkline.transports.asgi import RequestHeaders, WholeRequest

pytestmark = pytest.mark.anyio

PATIENCE = 10.0

HEAD = b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nX: y\r\n\r\n"


def post(body: bytes, number: int = 1) -> bytes:
    return HEAD % (number, len(body)) + body


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
    lines = [*draw.sample(LINES, draw.randrange(4)), draw.choice([b"Content-Length: %d", b"content-LENGTH:%d"])]
    draw.shuffle(lines)
    method = draw.choice([b"POST", b"POST", b"GET", b"HEAD", b"DELETE"])
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, draw.choice(TARGETS)), *lines, b"", b""])


def a_stream(draw: random.Random, head: bytes) -> list[bytes]:
    """Requests with that head, or nearly, and bodies that may look like one; in pieces."""
    stream, ends = b"", []
    for _ in range(draw.randrange(3, 10)):
        size = draw.choice([0, 4, 4, 4, 70, 400, 20_000])
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
    for size in (1, 2, 3):
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
    async with serving(tell, listening) as port, asyncio.timeout(PATIENCE):
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


SCOPE = {"path": "/"}
HEADERS = [(b"host", b"h")]


def known(head: bytes, length: bytes = b"4") -> KnownHead | None:
    """What is known of a head that has come often."""
    heads, came = KnownHeads(), head_of(head)
    if came is None:
        return None
    for _ in range(REPEATS):
        assert heads.learn(came, SCOPE, HEADERS, length) is None
    found = heads.learn(came, SCOPE, HEADERS, length)
    assert heads.of(came) is found
    return found


def is_known(heads: KnownHeads, text: bytes) -> bool:
    """Whether the head at the start of this is known."""
    head = head_of(text)
    return head is not None and heads.of(head) is not None


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n", id="not all of it"),
        pytest.param(b"POST / HTTP/1.1\r\nX-Content-Length: 4\r\n\r\n", id="another header"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n", id="twice"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", id="another length"),
        pytest.param(b"POST / HTTP/1.1\nContent-Length: 4\r\n\r\n", id="line breaks that are none"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 4\n\nbody\r\n\r\n", id="end that is none"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\rbody\r\n\r\n", id="end of half a line break"),
        pytest.param(b"POST / HTTP/1.1\r\nTransfer-Encoding: x\r\nContent-Length: 4\r\n\r\n", id="in chunks"),
        pytest.param(b"\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n", id="empty lines before"),
        pytest.param(b"POST / HTTP/1.1\r\nX: %b\r\nContent-Length: 4\r\n\r\n" % (b"y" * MAX_KNOWN_BYTES), id="long"),
    ],
)
def test_a_head_of_which_not_every_byte_is_certain_is_not_known(head: bytes) -> None:
    assert known(head) is None


def test_a_known_head_is_found_with_any_length_and_only_whole() -> None:
    head = b"POST / HTTP/1.1\r\ncontent-LENGTH:\t%b\r\nX: y\r\n\r\n"
    found = known(head % b"4" + b"body")
    assert found is not None
    for length in (b"0", b"4", b"0012", b"12345678"):
        data = head % length + b"body"
        begun = found.beginning_of(data)
        assert begun is not None
        assert (begun.length, data[begun.end :]) == (length, b"body")
        assert found.scope({"type": "http"}, begun.length) == {
            "type": "http",
            "path": "/",
            "headers": [(b"host", b"h"), (b"content-length", length)],
        }
        assert all(found.beginning_of(data[:end]) is None for end in range(begun.end))
    for length in (b"", b"-4", b"+4", b" 4", b"4 ", b"4_0", b"\xd9\xa4", b"123456789"):
        assert found.beginning_of(head % length + b"body") is None


def test_what_one_request_does_to_its_scope_is_not_seen_by_the_next() -> None:
    found = known(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n")
    assert found is not None
    scope = found.scope({}, b"4")
    scope["path"] = "/elsewhere"
    scope["headers"].clear()
    assert found.scope({}, b"4") == {"path": "/", "headers": [(b"host", b"h"), (b"content-length", b"4")]}


# Over connections


def reader(heads: KnownHeads, client: str = "1.2.3.4") -> RequestReader:
    """Of a connection that has come."""
    return RequestReader(cast(Carrier, object()), {"root_path": "", "client": (client, 1)}, heads)


def read(at: RequestReader, text: bytes) -> tuple[Any, dict[str, str]]:
    """The scope of the one request that this is, and its headers."""
    at.receive(text)
    at.read()
    exchange = at.queue.pop()
    assert exchange.is_whole
    return exchange.scope, at.headers_of(exchange.scope)


def is_parsed(heads: KnownHeads, text: bytes, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a new connection parses this."""
    parsed = False

    def parses(at: RequestReader) -> None:
        nonlocal parsed
        parsed = True

    with monkeypatch.context() as watched:
        watched.setattr(RequestReader, "on_message_begin", parses)
        at = reader(heads)
        at.receive(text)
        at.read()
    return parsed


def test_a_head_that_came_on_other_connections_is_known_and_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = KnownHeads()
    first = read(reader(heads), post(b"body"))
    for _ in range(REPEATS):
        assert is_parsed(heads, post(b"some"), monkeypatch)
        read(reader(heads), post(b"some"))
    assert not is_parsed(heads, post(b"body"), monkeypatch)
    assert read(reader(heads), post(b"body")) == first


def test_a_head_that_came_on_other_connections_is_that_of_the_one_that_it_comes_on() -> None:
    heads = KnownHeads()
    for number in range(2 * REPEATS):
        scope, headers = read(reader(heads, f"10.0.0.{number}"), post(b"body"))
        assert scope["client"] == (f"10.0.0.{number}", 1)
        assert headers == {"host": "h", "x": "y"}
        assert cast(RequestHeaders, headers).peer == f"10.0.0.{number}"
        headers["x"] = "changed"


OTHER = b"POST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nX: z\r\n\r\nbody"


def test_a_head_behind_which_another_begins_is_known_as_itself() -> None:
    heads = KnownHeads()
    for _ in range(2 * REPEATS):
        at = reader(heads)
        at.receive(post(b"body") + OTHER[:-6])
        at.read()
        assert at.headers_of(at.queue.pop().scope) == {"host": "h", "x": "y"}


def test_what_comes_behind_a_known_head_has_its_own_headers() -> None:
    heads = KnownHeads()
    for _ in range(2 * REPEATS):
        at = reader(heads)
        assert read(at, post(b"body"))[1] == {"host": "h", "x": "y"}
        assert read(at, OTHER)[1] == {"host": "h", "x": "z"}
        assert read(at, post(b"body"))[1] == {"host": "h", "x": "y"}
    assert (is_known(heads, post(b"body")), is_known(heads, OTHER)) == (True, True)


@pytest.mark.parametrize("version", [b"HTTP/1.1\r\nConnection: close", b"HTTP/1.0\r\nConnection: keep-alive"])
def test_a_connection_that_ends_with_its_request_does_so_however_often_its_head_comes(version: bytes) -> None:
    heads = KnownHeads()
    for _ in range(2 * REPEATS):
        at = reader(heads)
        at.receive(post(b"body").replace(b"HTTP/1.1", version))
        at.read()
        assert not at.queue.pop().is_kept


def test_a_head_that_comes_for_a_single_call_is_not_kept() -> None:
    heads = KnownHeads()
    at = reader(heads)
    for number in range(100):
        for _ in range(REPEATS):
            read(at, post(b"body", number))
    known = sum(is_known(heads, post(b"body", number)) for number in range(100))
    assert known < 5, "two seldom share a counter"


def test_of_heads_that_are_known_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_head, "MAX_KNOWN", 10)
    heads = KnownHeads()
    for number in range(30):
        for _ in range(REPEATS + 1):
            read(reader(heads), post(b"body", number))
    assert [number for number in range(30) if is_known(heads, post(b"body", number))] == list(range(20, 30))


@pytest.mark.parametrize(
    ("line", "is_kept"), [(b"%03d:\r\n", False), (b"%04d: " + b"x" * 130 + b"\r\n", True)], ids=["short", "long"]
)
def test_a_head_of_many_headers_takes_not_much_more_than_one_of_few(line: bytes, is_kept: bool) -> None:
    lines = b"".join([line % number for number in range(250)])
    lines = lines[: 8_000 - 8_000 % len(line % 1)]
    tracemalloc.start()
    try:
        heads = KnownHeads()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(20):
            for _ in range(REPEATS + 1):
                read(reader(heads), post(b"", number).replace(b"X: y\r\n", lines))
            assert is_known(heads, post(b"", number).replace(b"X: y\r\n", lines)) is is_kept
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 20 * 64_000
    finally:
        tracemalloc.stop()


def test_what_came_once_is_forgotten_after_many_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_head, "SIGHTINGS", 1_024)
    heads = KnownHeads()
    came = [cast(HeadBytes, head_of(post(b"body", number))) for number in range(10_000)]
    known = [heads.learn(one, SCOPE, HEADERS, b"4") for one in came]
    assert sum(one is not None for one in known) < 2_500, "they share counters, but not for long"


def test_of_more_heads_than_are_kept_which_come_in_turn_some_are_known_and_few_are_learned_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(known_head, "MAX_KNOWN", 10)
    heads, known, learned = KnownHeads(), 0, 0
    for _ in range(30):
        for number in range(15):
            known += is_known(heads, post(b"body", number))
            at = reader(heads)
            read(at, post(b"body", number))
            learned += at._known_head is not None
    assert (known > 150, learned - known < 150) == (True, True)


def test_a_connection_whose_heads_are_all_its_own_is_not_looked_at_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of clients that send a new trace context with each request."""
    looked = 0

    def counted(data: bytes) -> Any:
        nonlocal looked
        looked += 1
        return known_head.head_of(data)

    monkeypatch.setattr(request_reader, "head_of", counted)
    heads = KnownHeads()
    at = reader(heads)
    for number in range(200):
        read(at, post(b"body", number))
    assert looked == request_reader.MAX_STRANGERS
    for _ in range(REPEATS + 1):
        read(reader(heads), post(b"body"))
    other = reader(heads)
    looked = 0
    for number in range(10):
        read(other, post(b"body"))
        for stranger in range(request_reader.MAX_STRANGERS - 1):
            read(other, post(b"body", 1000 * (number + 1) + stranger))
    assert looked > 9 * request_reader.MAX_STRANGERS, "where one comes again now and then, they are looked for"
