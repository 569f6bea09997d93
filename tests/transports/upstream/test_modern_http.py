"""Requests without a session to a server on a real socket: the probe, the forms of an answer, bounds, cancellation."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from harness.ports import free_port
from harness.raw_http import PATIENCE, Peer, RawServer, Serve, serving
from trunkline.mux import modern
from trunkline.mux.envelope import parse
from trunkline.mux.errors import Cancelled, SessionLost, TimedOut, TrunklineError, UpstreamFault, UpstreamUnreachable
from trunkline.mux.modern import CAPABILITIES_KEY, VERSION_KEY
from trunkline.mux.routing import LEGACY, MODERN
from trunkline.mux.statistics import Statistics
from trunkline.transports.event_stream import encode
from trunkline.transports.upstream import modern_http
from trunkline.transports.upstream.modern_http import Form, ModernHTTPServer, Passage, SlowClient
from trunkline.transports.upstream.streamable_http import StreamableHTTPConnector

pytestmark = pytest.mark.anyio

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
OK = {"jsonrpc": "2.0", "id": 1, "result": {"resultType": "complete", "n": 1}}
NOTE = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"data":1}}'
SPOKEN = {"jsonrpc": "2.0", "id": 1, "result": {"supportedVersions": [MODERN]}}


def answer(body: object, status: int = 200, kind: str = "application/json") -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        kind.encode(),
        len(text),
        text,
    )


def failure(code: int) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "error": {"code": code, "message": "no"}}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def one(*pieces: bytes) -> Serve:
    """Answer every request with this."""

    async def serve(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(*pieces)

    return serve


class Here:
    """A server, and what asks it."""

    def __init__(self, server: RawServer, upstream: ModernHTTPServer, statistics: Statistics) -> None:
        self.server = server
        self.upstream = upstream
        self.counts = statistics.counts

    def send(self, method: str = "tools/call", **headers: str) -> Passage:
        meta = {VERSION_KEY: MODERN, CAPABILITIES_KEY: {}}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": meta}}).encode()
        return self.upstream.send(parse(body, limit=10_000), body, {n.replace("_", "-"): v for n, v in headers.items()})


@asynccontextmanager
async def asking(url: str, timeout: float = PATIENCE) -> AsyncIterator[tuple[ModernHTTPServer, Statistics]]:
    statistics = Statistics()
    connector = StreamableHTTPConnector("up", url, statistics, headers={"Authorization": "Bearer ours"})
    upstream = ModernHTTPServer("up", connector.http, connector.headers, statistics, timeout=timeout)
    try:
        yield upstream, statistics
    finally:
        await upstream.close()


@asynccontextmanager
async def asked(serve: Serve, timeout: float = PATIENCE) -> AsyncIterator[Here]:
    async with serving(serve) as server, asking(server.url, timeout) as (upstream, statistics):
        yield Here(server, upstream, statistics)


async def soon(awaited: Awaitable[Any]) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await awaited


async def all_of(passage: Passage) -> bytes:
    """What the passage brings, to its end."""
    await soon(passage.form())
    found = b""
    while (piece := await soon(passage.next(PATIENCE))) is not None:
        found += piece
    return found


async def failed(passage: Passage) -> TrunklineError:
    """Why there is no answer."""
    with pytest.raises(TrunklineError) as caught:
        await soon(passage.form())
    assert passage.outcome == caught.value.reason
    passage.close()
    return caught.value


# What a server speaks.


async def test_l29_a_server_is_asked_once_however_many_wait() -> None:
    requests: list[tuple[str, dict[str, str], bytes]] = []

    async def serve(peer: Peer) -> None:
        while True:
            requests.append(await peer.request())
            await peer.say(answer(SPOKEN))

    async with asked(serve) as here:
        found = await soon(asyncio.gather(*(here.upstream.revisions() for _ in range(20))))
        assert found == [(MODERN,)] * 20
        assert await here.upstream.revisions() == (MODERN,)
        assert here.counts == {("upstream_requests", "up", "probe"): 1}
    ((start, headers, body),) = requests
    assert start == "POST /mcp HTTP/1.1"
    assert headers["mcp-protocol-version"] == MODERN
    assert headers["mcp-method"] == json.loads(body)["method"] == "server/discover"
    assert headers["authorization"] == "Bearer ours"


async def test_whoever_leaves_does_not_take_the_probe_along() -> None:
    go_on = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await go_on.wait()
        await peer.say(answer(SPOKEN))

    async with asked(serve) as here:
        leaving, staying = (asyncio.create_task(here.upstream.revisions()) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        go_on.set()
        assert await soon(staying) == (MODERN,)


@pytest.mark.parametrize(
    ("pieces", "revisions"),
    [
        ([answer(SPOKEN)], (MODERN,)),
        (
            [STREAM, chunk(encode(b"", id="1")), chunk(encode(NOTE)), chunk(encode(json.dumps(SPOKEN).encode()))],
            (MODERN,),
        ),
        ([STREAM, chunk(encode(b"{")), END], LEGACY),
        ([STREAM, END], LEGACY),
        ([answer(failure(-32601), 404)], LEGACY),
        ([answer(b"Missing session", 400, "text/plain")], LEGACY),
        ([answer(NOTE)], LEGACY),
        ([answer(b"<html>", 200, "text/html")], LEGACY),
    ],
)
async def test_what_the_answer_to_the_probe_tells(pieces: list[bytes], revisions: tuple[str, ...]) -> None:
    async with asked(one(*pieces)) as here:
        assert await soon(here.upstream.revisions()) == revisions


@pytest.mark.parametrize(
    "first", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", answer(b"busy", 503), answer(b"who?", 401)]
)
async def test_a_failure_is_no_verdict_and_the_next_one_asks_again(first: bytes) -> None:
    firsts = [first]

    async def serve(peer: Peer) -> None:
        while True:
            await peer.request()
            if not firsts:
                await peer.say(answer(SPOKEN))
                continue
            await peer.say(firsts.pop())
            if not first.endswith((b"busy", b"who?")):
                return

    async with asked(serve) as here:
        with pytest.raises(TrunklineError) as caught:
            await soon(here.upstream.revisions())
        assert caught.value.code in (-31001, -31002)
        assert await soon(here.upstream.revisions()) == (MODERN,)


async def test_a_server_that_does_not_answer_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modern_http, "PROBE_SECONDS", 0)
    left = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.closed()
        left.set()

    async with asked(serve) as here:
        with pytest.raises(UpstreamUnreachable):
            await soon(here.upstream.revisions())


async def test_a_server_of_sessions_is_asked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modern_http, "LEGACY_SECONDS", 0)
    answers = [answer(SPOKEN), answer(failure(-32601))]

    async def serve(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(answers.pop())

    async with asked(serve) as here:
        assert await soon(here.upstream.revisions()) == LEGACY
        assert await soon(here.upstream.revisions()) == (MODERN,)


@pytest.mark.parametrize(
    ("pieces", "is_asked_again"),
    [
        ([answer(OK)], False),
        ([answer(failure(-32602), 400)], False),
        ([STREAM, chunk(encode(json.dumps(OK).encode())), END], False),
        ([answer(failure(-32022), 400)], True),
        ([answer(b"no such session", 404, "text/plain")], True),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"], True),
    ],
)
async def test_l29_after_a_failure_the_server_is_asked_again(pieces: list[bytes], is_asked_again: bool) -> None:
    async def serve(peer: Peer) -> None:
        while True:
            _, headers, _ = await peer.request()
            if headers["mcp-method"] == "server/discover":
                await peer.say(answer(SPOKEN))
            else:
                await peer.say(*pieces)
                if b"length: 9" in pieces[0]:
                    return

    async with asked(serve) as here:
        await soon(here.upstream.revisions())
        passage = here.send(mcp_method="tools/call")
        try:
            await soon(passage.form())
            await all_of(passage)
        except TrunklineError:
            pass
        passage.close()
        assert await soon(here.upstream.revisions()) == (MODERN,)
        assert here.counts["upstream_requests", "up", "probe"] == 1 + is_asked_again


async def test_closing_ends_the_waiting() -> None:
    async def serve(peer: Peer) -> None:
        await peer.closed()

    async with asked(serve) as here:
        waiting = asyncio.create_task(here.upstream.revisions())
        await asyncio.sleep(0)
        await here.upstream.close()
        with pytest.raises(UpstreamUnreachable):
            await soon(waiting)


# The request.


async def test_a_request_goes_out_once_with_the_headers_that_it_was_given() -> None:
    requests: list[tuple[str, dict[str, str], bytes]] = []

    async def serve(peer: Peer) -> None:
        while True:
            requests.append(await peer.request())
            await peer.say(answer(OK))

    async with asked(serve) as here:
        passage = here.send(mcp_method="tools/call", mcp_name="t", x_tenant="\xe9")
        await soon(passage.form())
        passage.close()
        assert here.counts == {("upstream_requests", "up", "call"): 1}
        with pytest.raises(ValueError, match="cannot be sent"):
            here.send(x_bad="a\r\nb: c")
    ((_, headers, body),) = requests
    assert (headers["mcp-method"], headers["mcp-name"], headers["x-tenant"]) == ("tools/call", "t", "\xe9")
    assert headers["accept"] == "application/json, text/event-stream"
    assert headers["authorization"] == "Bearer ours"
    assert json.loads(body)["method"] == "tools/call"


async def test_every_request_has_its_own_headers_however_many_were_before() -> None:
    names: list[str] = []

    async def serve(peer: Peer) -> None:
        while True:
            _, headers, _ = await peer.request()
            names.append(headers["mcp-name"])
            await peer.say(answer(OK))

    sent = [str(n) for n in range(modern_http.MAX_KEPT + 2)] + ["0", "x" * 2000, "1", "x" * 2000]
    async with asked(serve) as here:
        for name in sent:
            passage = here.send(mcp_name=name)
            await soon(passage.form())
            passage.close()
    assert names == sent


# A body of JSON.


@pytest.mark.parametrize(
    ("code", "status", "form"),
    [
        (None, 200, 200),
        (-32601, 404, 404),
        (-32601, 200, 404),
        (-32602, 400, 400),
        (-32021, 400, 400),
        (-32603, 500, 200),
        (-32603, 200, 200),
        (7, 418, 200),
    ],
)
async def test_e20_a_whole_body_has_the_status_of_its_error(code: int | None, status: int, form: int) -> None:
    body = json.dumps(OK if code is None else failure(code)).encode() + b" \n"
    async with asked(one(answer(body, status, "Application/JSON; charset=utf-8"))) as here:
        passage = here.send()
        assert await soon(passage.form()) == Form(form, is_stream=False, whole=body)
        assert await passage.next(0) is None
        assert passage.outcome == ("ok" if code is None else "error")


@pytest.mark.parametrize(
    ("reply", "kind", "code"),
    [
        (answer(OK, 400), UpstreamFault, -32603),
        (answer(NOTE), UpstreamFault, -32603),
        (answer(b"{"), UpstreamFault, -32603),
        (answer(b"[]"), UpstreamFault, -32603),
        (answer(b"", 202), UpstreamFault, -32603),
        (answer(OK, 202), UpstreamFault, -32603),
        (answer(b"<html>", 200, "text/html"), UpstreamUnreachable, -31001),
        (answer(b"no", 404, "text/plain"), UpstreamUnreachable, -31001),
        (answer(b"{", 401), UpstreamUnreachable, -31001),
        (answer(b" " * 70_000, 500), UpstreamUnreachable, -31001),
        (answer(encode(NOTE), 500, "text/event-stream"), UpstreamUnreachable, -31001),
    ],
)
async def test_e21_what_is_no_response_is_an_error_of_its_own(
    reply: bytes, kind: type[TrunklineError], code: int
) -> None:
    async with asked(one(reply)) as here:
        error = await failed(here.send())
        assert isinstance(error, kind)
        assert error.code == code


async def test_a_large_body_is_passed_on_as_it_comes() -> None:
    go_on = asyncio.Event()
    first, second = b'{"jsonrpc":"2.0","id":1,"result":{"x":"' + b"a" * 100_000, b'"}}'

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(first + second)[: -len(second)])
        await go_on.wait()
        await peer.say(second)

    async with asked(serve) as here:
        passage = here.send()
        assert await soon(passage.form()) == Form(200, is_stream=False)
        found = b""
        while len(found) < len(first):  # the rest is not even sent
            found += await soon(passage.next(PATIENCE))
        go_on.set()
        assert found + await all_of(passage) == first + second
        assert passage.outcome == "ok"


async def test_a_large_body_that_is_cut_is_not_whole() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(b" " * 200_000)[:-1])

    async with asked(serve) as here:
        passage = here.send()
        await soon(passage.form())
        with pytest.raises(SessionLost):
            await all_of(passage)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_g10_a_body_and_an_event_are_bounded(monkeypatch: pytest.MonkeyPatch, is_stream: bool) -> None:
    monkeypatch.setattr(modern_http, "MAX_EVENT_BYTES", 100_000)
    left = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        if is_stream:
            await peer.say(STREAM, chunk(b"data: "), chunk(b"x" * 200_000))
        else:
            await peer.say(answer(b" " * 300_000)[:-100_000])
        await peer.closed()
        left.set()

    async with asked(serve) as here:
        passage = here.send()
        with pytest.raises(UpstreamFault):
            await all_of(passage)
        await soon(left.wait())


async def test_a_body_that_is_declared_too_large_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modern_http, "MAX_EVENT_BYTES", 100_000)
    serve, _, left = hanging(answer(b" " * 100_001)[:200])
    async with asked(serve) as here:
        assert isinstance(await failed(here.send()), UpstreamFault)
        await soon(left.wait())


# A stream.


async def test_h5_events_are_passed_on_one_by_one_without_ids() -> None:
    go_on = asyncio.Event()
    odd = b'event: vendor\r\nid: 8\r\nretry: 5\r\ndata: {"jsonrpc":"2.0",\r\ndata: "method":"x"}\r\n\r\n'
    response = b'{"jsonrpc":"2.0", "id":1,"result":{"n":1.50}}'

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM, chunk(b": hello\n\n"), chunk(encode(b"", id="1")), chunk(encode(NOTE, id="2")))
        await go_on.wait()
        await peer.say(chunk(odd), chunk(encode(response, id="3") + encode(NOTE)), END)

    async with asked(serve) as here:
        passage = here.send()
        assert await soon(passage.form()) == Form(200, is_stream=True)
        assert await soon(passage.next(PATIENCE)) == b"event: message\ndata: " + NOTE + b"\n\n"
        assert await passage.next(0) == b""
        go_on.set()
        assert await all_of(passage) == (
            b'event: vendor\ndata: {"jsonrpc":"2.0",\ndata: "method":"x"}\n\n'
            b"event: message\ndata: " + response + b"\n\n"
        )
        assert passage.outcome == "ok"
        passage.close()


@pytest.mark.parametrize(
    ("rest", "kind"),
    [
        ([END], SessionLost),
        ([b""], SessionLost),
        ([chunk(b"data: {\n\n")], UpstreamFault),
        ([chunk(b"data: \xff\n\n")], UpstreamFault),
        ([chunk(b"data: []\n\n")], UpstreamFault),
    ],
)
async def test_g9_a_stream_that_breaks_says_why(rest: list[bytes], kind: type[TrunklineError]) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM, chunk(encode(NOTE)), *rest)

    async with asked(serve) as here:
        passage = here.send()
        with pytest.raises(kind):
            await all_of(passage)
        assert passage.outcome == kind.reason


async def test_an_error_on_a_stream_is_an_error() -> None:
    async with asked(one(STREAM, chunk(encode(json.dumps(failure(-32603)).encode())), END)) as here:
        passage = here.send()
        await all_of(passage)
        assert passage.outcome == "error"


async def test_a_connection_is_used_again_after_a_stream_that_ended() -> None:
    async with asked(one(STREAM, chunk(encode(json.dumps(OK).encode())) + END)) as here:
        for _ in range(3):
            passage = here.send()
            await all_of(passage)
            passage.close()
        assert here.server.connections == 1


async def test_a_stream_that_stays_open_after_its_response_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modern_http, "LINGER_SECONDS", 0)
    left = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM, chunk(encode(json.dumps(OK).encode())))
        await peer.closed()
        left.set()

    async with asked(serve) as here:
        passage = here.send()
        await all_of(passage)
        passage.close()
        await soon(left.wait())


async def test_l28_a_stream_of_subscriptions_ends_without_a_word() -> None:
    async with asked(one(STREAM, chunk(encode(NOTE)), END)) as here:
        passage = here.send(modern.LISTEN)
        assert NOTE in await all_of(passage)
        assert passage.outcome == "ok"


# Its end.


def hanging(*pieces: bytes) -> tuple[Serve, asyncio.Event, asyncio.Event]:
    """A server that says this and no more; set when it has said it, and when its client has closed the connection."""
    said, left = asyncio.Event(), asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(*pieces)
        said.set()
        await peer.closed()
        left.set()

    return serve, said, left


@pytest.mark.parametrize("pieces", [(), (STREAM,), (STREAM, chunk(encode(NOTE))), (answer(b" " * 99_999)[:-1],)])
async def test_e13_closing_cuts_the_exchange(pieces: tuple[bytes, ...]) -> None:
    serve, said, left = hanging(*pieces)
    async with asked(serve) as here:
        passage = here.send()
        await soon(said.wait())
        passage.close()
        await soon(left.wait())
        assert passage.outcome == "cancelled"
        passage.close()


async def test_who_waits_for_an_answer_is_told_that_it_was_cancelled() -> None:
    serve, said, _ = hanging()
    async with asked(serve) as here:
        passage = here.send()
        waiting = asyncio.create_task(passage.form())
        await soon(said.wait())
        passage.close()
        with pytest.raises(Cancelled):
            await soon(waiting)


async def test_e17_a_silent_server_is_cut_but_not_a_quiet_subscription() -> None:
    async def serve(peer: Peer) -> None:
        _, headers, _ = await peer.request()
        if headers["mcp-method"] == modern.LISTEN:
            await peer.say(STREAM, chunk(encode(NOTE)))
        await peer.closed()

    async with asked(serve, timeout=0.05) as here:
        listening = here.send(modern.LISTEN, mcp_method=modern.LISTEN)
        assert await soon(listening.next(PATIENCE))
        error = await failed(here.send(mcp_method="tools/call"))
        assert isinstance(error, TimedOut)
        assert not listening.is_over
        listening.close()


async def test_a_stream_that_falls_silent_says_so() -> None:
    serve, _, left = hanging(STREAM, chunk(encode(NOTE)))
    async with asked(serve, timeout=0.05) as here:
        passage = here.send()
        with pytest.raises(TimedOut):
            await all_of(passage)
        await soon(left.wait())


async def test_g10_what_a_client_does_not_take_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modern_http, "UNREAD_BYTES", 100_000)
    left = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM)
        try:
            while not left.is_set():
                await peer.say(chunk(encode(b'{"jsonrpc":"2.0","method":"x","params":{"x":"' + b"x" * 9000 + b'"}}')))
        finally:
            left.set()

    async with asked(serve) as here:
        passage = here.send()
        await soon(left.wait())
        with pytest.raises(SlowClient):
            await soon(passage.next(0))
        assert passage.outcome == "slow_client"


async def test_g6_a_server_that_is_away_ran_nothing() -> None:
    async with asking(f"http://127.0.0.1:{free_port()}/mcp") as (upstream, _):
        passage = Here(RawServer(one()), upstream, Statistics()).send()
        error = await failed(passage)
        assert (error.code, error.data) == (-31001, {"executed": "no"})
        with pytest.raises(UpstreamUnreachable):
            await soon(upstream.revisions())


@pytest.mark.parametrize("method", ["tools/call", modern.LISTEN])
async def test_g8_a_request_is_stopped_from_this_side(method: str) -> None:
    serve, said, left = hanging(STREAM)
    cause = SessionLost("stopped", executed="unknown")
    async with asked(serve) as here:
        passage = here.send(method)
        await soon(said.wait())
        await soon(passage.form())
        passage.stop(cause)
        if method == modern.LISTEN:
            assert await passage.next(0) is None
        else:
            with pytest.raises(SessionLost):
                await passage.next(0)
        passage.close()
        if method != modern.LISTEN:
            await soon(left.wait())


async def test_closing_the_client_breaks_what_is_under_way() -> None:
    serve, said, _ = hanging()
    async with asked(serve) as here:
        passage = here.send()
        await soon(said.wait())
        await here.upstream.close()
        assert isinstance(await failed(passage), SessionLost)


async def test_a_rotated_credential_goes_with_the_next_request() -> None:
    carried: list[str] = []

    async def serve(peer: Peer) -> None:
        while True:
            _, headers, _ = await peer.request()
            carried.append(headers["authorization"])
            await peer.say(answer(OK))

    async with asked(serve) as here:
        for value in ("ours", "new"):
            here.upstream.rotate({"authorization": f"Bearer {value}"})
            for _ in range(2):
                await all_of(here.send(x_class="a"))
    assert carried == ["Bearer ours"] * 2 + ["Bearer new"] * 2
