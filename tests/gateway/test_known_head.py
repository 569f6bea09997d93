"""Which heads are known, on which connections, and for how long; nothing here has a socket."""

import gc
import tracemalloc
from typing import Any, cast

import pytest
from harness.http_serving import post
from trunkline.gateway import known_head, request_reader
from trunkline.gateway.http_exchange import Carrier
from trunkline.gateway.known_head import MAX_KNOWN_BYTES, REPEATS, HeadBytes, KnownHead, KnownHeads, head_of
from trunkline.gateway.request_reader import RequestReader
from trunkline.transports.asgi import RequestHeaders

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


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET / HTTP/1.1\r\nX: y\r\n", id="not all of it"),
        pytest.param(b"GET / HTTP/1.1\nX: y\r\n\r\n", id="line breaks that are none"),
        pytest.param(b"GET / HTTP/1.1\n\nbody\r\n\r\n", id="end that is none"),
        pytest.param(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", id="in chunks"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 000000004\r\n\r\n", id="a length of many digits"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length:4 \r\n\r\n", id="a length that is spelled otherwise"),
        pytest.param(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", id="empty lines before"),
        pytest.param(b"GET / HTTP/1.1\r\nX: %b\r\n\r\n" % (b"y" * MAX_KNOWN_BYTES), id="long"),
    ],
)
def test_a_head_without_a_length_of_which_not_every_byte_is_certain_is_not_known(head: bytes) -> None:
    assert known(head, b"") is None


def test_a_known_head_without_a_length_is_found_whole_and_alone() -> None:
    head = b"DELETE / HTTP/1.1\r\nX: y\r\n\r\n"
    found = known(head + b"GET / HTTP/1.1\r\n", b"")
    assert found is not None
    assert found.beginning_of(head + b"more") == (b"", len(head))
    assert found.scope({}, b"") == {"path": "/", "headers": [(b"host", b"h")]}
    assert all(found.beginning_of(head[:end]) is None for end in range(len(head)))
    assert found.beginning_of(b"DELETE / HTTP/1.1\r\nX: y\r\nContent-Length: 4\r\n\r\n") is None


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
    return exchange.scope, exchange.headers


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


def test_requests_without_a_body_are_known_and_end_with_their_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, leaving = KnownHeads(), b"DELETE / HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\n"
    for _ in range(REPEATS + 1):
        first = read(reader(heads), leaving)
    assert not is_parsed(heads, leaving, monkeypatch)
    at = reader(heads)
    assert read(at, leaving + post(b"body")) == first
    at.read()
    assert (at.queue.pop().scope["method"], bytes(at.unread)) == ("POST", b"")


OTHER = b"POST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nX: z\r\n\r\nbody"


def test_a_head_behind_which_another_begins_is_known_as_itself() -> None:
    heads = KnownHeads()
    for _ in range(2 * REPEATS):
        at = reader(heads)
        at.receive(post(b"body") + OTHER[:-6])
        at.read()
        assert at.queue.pop().headers == {"host": "h", "x": "y"}


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
