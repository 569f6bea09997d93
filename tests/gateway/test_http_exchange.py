"""One request and its answer: in one packet where it may be, as HTTP has it, and never twice."""

import asyncio
import tracemalloc
from typing import Any

import pytest
from harness.gateways import until
from harness.http_serving import GET, PATIENCE, Parts, answering, echo, parts_of, said, serving, talking
from trunkline.gateway import http_exchange
from trunkline.gateway.http_exchange import SMALL_BODY, AnswerHeads
from trunkline.gateway.http_listening import HTTPListening
from trunkline.mux.envelope import Spliced
from trunkline.mux.statistics import Statistics
from trunkline.transports.asgi import WholeRequest

pytestmark = pytest.mark.anyio


async def test_an_answer_goes_out_in_one_packet() -> None:
    async with parts_of(answering(b"body"), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n") as client:
        part = await client.parts.get()
        assert part.startswith(b"HTTP/1.1 200")
        assert part.endswith(b"\r\n\r\nbody")


async def test_who_waits_to_be_told_to_go_on_is_told_before_the_body_comes() -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    async with serving(answering(b"body"), HTTPListening(Statistics())) as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"what")
        assert (await reader.readuntil(b"body")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_client_of_http_1_0_is_not_told_to_go_on() -> None:
    head = b"POST / HTTP/1.0\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    async with parts_of(answering(b"body"), head + b"w") as client:
        assert (await client.parts.get()).startswith(b"HTTP/1.1 200")


async def test_the_head_of_a_stream_waits_for_nothing_that_comes_later() -> None:
    go_on = asyncio.Event()
    async with parts_of(answering(b"late", until=go_on), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n") as client:
        assert (await client.parts.get()).endswith(b"\r\n\r\n")
        go_on.set()
        assert (await client.parts.get()).startswith(b"4\r\nlate\r\n")


async def test_a_head_goes_out_where_nothing_follows_it() -> None:
    for method, status in ((b"HEAD", 200), (b"GET", 204), (b"GET", 200)):

        async def empty(scope: Any, receive: Any, send: Any, status: int = status) -> None:
            length = [(b"content-length", b"0")] if status == 200 else []
            await send({"type": "http.response.start", "status": status, "headers": length})
            await send({"type": "http.response.body", "body": b""})

        async with parts_of(empty, method + b" / HTTP/1.1\r\nHost: h\r\n\r\n") as client:
            assert (await client.parts.get()).startswith(b"HTTP/1.1 %d" % status)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_an_answer_is_whole_before_its_connection_is_closed(method: bytes) -> None:
    bodies = b"x" * (2 * SMALL_BODY), b"y"
    async with parts_of(answering(*bodies), method + b" / HTTP/1.0\r\nHost: h\r\n\r\n") as client:
        await client.is_over.wait()
        head, _, body = b"".join(client.parts.get_nowait() for _ in range(client.parts.qsize())).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert body == (b"".join(bodies) if method == b"GET" else b"")


async def test_head_and_http_1_0_get_what_they_understand() -> None:
    async with talking(echo) as (reader, writer):
        writer.write(b"HEAD /1 HTTP/1.1\r\nHost: h\r\n\r\n" + GET % 2)
        assert b"content-length: 8" in await reader.readuntil(b"\r\n\r\n")
        assert await said(reader) == b"GET /2 "
    async with talking(answering(b"a", b"b", until=_set())) as (reader, writer):
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        assert b"chunked" not in answer
        assert b"connection: close" in answer
        assert answer.endswith(b"\r\n\r\nab")


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@pytest.mark.parametrize(
    "headers",
    [[(b"x", b"a\r\nset-cookie: b")], [(b"x\r\n", b"a")], [(b"content-length", b"1")]],
    ids=["value", "name", "length"],
)
async def test_an_answer_that_would_be_no_http_is_not_sent(headers: list[tuple[bytes, bytes]]) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"longer"})

    async with talking(application) as (reader, writer):
        writer.write(GET % 1)
        answer = await reader.read()
        assert not answer or answer.startswith(b"HTTP/1.1 500 ")
        assert b"cookie" not in answer


def test_heads_of_answers_are_encoded_once_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_exchange, "MAX_ANSWER_HEADS", 10)
    heads = AnswerHeads()
    made = [heads.of(200, [(b"x", b"%d" % number)]) for number in range(30)]
    assert [head.lines for head in made] == [b"HTTP/1.1 200 OK\r\nx: %d\r\n" % number for number in range(30)]
    again = [heads.of(200, [(b"x", b"%d" % number)]) for number in reversed(range(30))]
    assert [one is other for one, other in zip(reversed(again), made, strict=True)] == [False] * 20 + [True] * 10
    for _ in range(2):
        with pytest.raises(RuntimeError, match="line break"):
            heads.of(200, [(b"x", b"a\r\nset-cookie: b")])
    assert heads.of(202, [(b"x", b"29")]).lines == b"HTTP/1.1 202 Accepted\r\nx: 29\r\n"


def test_what_a_client_chooses_the_length_of_is_not_kept_with_the_heads_of_answers() -> None:
    heads = AnswerHeads()
    tracemalloc.start()
    try:
        for number in range(100):
            challenge = b'Bearer resource_metadata="http://localhost:%d%b"' % (number, b"0" * 100_000)
            assert heads.of(401, [(b"www-authenticate", challenge)]).lines.endswith(challenge + b"\r\n")
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()


async def test_an_application_that_fails_is_answered_for() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/2":
            raise RuntimeError

    for number in (1, 2):
        async with talking(application) as (reader, writer):
            writer.write(GET % number)
            assert (await reader.read()).endswith(b"\r\n\r\nInternal Server Error")


async def test_what_came_whole_may_be_taken_at_once() -> None:
    """And is offered but once: who took it and failed has answered."""
    offered: list[str] = []

    def take(whole: WholeRequest) -> bool:
        offered.append(whole.scope["path"])
        match whole.scope["path"]:
            case "/1":
                whole.reply(200, [(b"x-at-once", b"yes")], b"at once " + whole.body)
            case "/2":
                asyncio.get_running_loop().call_soon(whole.reply, 200, [], b"later")
            case "/large":
                whole.reply(200, [], Spliced(b"at ", memoryview(b"x" * SMALL_BODY), b" once"))
            case "/3":
                whole.go_on(echo(whole.scope, whole.receive, whole.send))
            case "/4":
                raise RuntimeError
            case _:
                return False
        return True

    post = b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
    async with talking(echo, HTTPListening(Statistics(), take)) as (reader, writer):
        large = b"POST /large HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
        writer.write(post % 1 + post % 2 + large + large.replace(b"POST", b"HEAD") + post % 3 + post % 5 + post % 4)
        assert await said(reader) == b"at once body"
        assert await said(reader) == b"later"
        assert await said(reader) == b"at %b once" % (b"x" * SMALL_BODY)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await said(reader) == b"POST /3 body"
        assert await said(reader) == b"POST /5 body"
        assert (await reader.read()).startswith(b"HTTP/1.1 500 ")
    assert offered == ["/1", "/2", "/large", "/large", "/3", "/5", "/4"]


async def test_who_took_a_request_learns_that_its_client_has_gone() -> None:
    taken, gone = asyncio.Event(), asyncio.Event()

    def take(whole: WholeRequest) -> bool:
        whole.left = gone.set
        taken.set()
        return True

    async with talking(echo, HTTPListening(Statistics(), take)) as (_, writer):
        writer.write(GET % 1)
        await taken.wait()
        assert not gone.is_set()
        writer.close()
        await gone.wait()


async def test_an_answer_that_is_due_at_the_end_of_the_server_closes_its_connection() -> None:
    asked, may = asyncio.Event(), asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await may.wait()
        await echo(scope, receive, send)

    listening = HTTPListening(Statistics())
    async with talking(application, listening) as (reader, writer):
        writer.write(GET % 1)
        await asked.wait()
        for connection in list(listening.state.connections):
            connection.shutdown()
        may.set()
        answer = await reader.read()
        assert b"connection: close" in answer
        assert answer.endswith(b"GET /1 ")


async def test_a_client_that_takes_nothing_holds_up_who_sends_to_it() -> None:
    sent, is_over = 0, False

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not is_over:
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
            sent += 65_536

    async with serving(application, HTTPListening(Statistics())) as port, asyncio.timeout(PATIENCE):
        loop = asyncio.get_running_loop()
        transport, client = await loop.create_connection(Parts, "127.0.0.1", port)
        transport.pause_reading()
        transport.write(GET % 1)
        await until(lambda: sent)
        await asyncio.sleep(0.5)
        assert sent < 20_000_000  # what the system's buffers hold
        is_over = True
        transport.close()
        await client.is_over.wait()


async def test_a_stream_that_ends_after_the_end_of_the_server_has_begun_ends_its_connection() -> None:
    until = asyncio.Event()
    listening = HTTPListening(Statistics())
    async with talking(answering(b"a", b"b", until=until), listening) as (reader, writer):
        writer.write(GET % 1)
        await reader.readuntil(b"\r\n\r\n")
        for connection in list(listening.state.connections):
            connection.shutdown()
        until.set()
        assert (await reader.read()).endswith(b"0\r\n\r\n")


async def test_one_request_gets_one_answer_even_if_its_body_turns_out_to_be_no_http() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    async with talking(application) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert await said(reader) == b"no"
        writer.write(b"nonsense\r\n")
        assert await reader.read() == b""


async def test_who_waited_to_go_on_and_was_answered_begins_anew() -> None:
    """Whether the body comes all the same is not known; it must not be taken for a request, nor a request for it."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async with talking(application) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 40\r\nExpect: 100-continue\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer
