"""Requests without a session to a server on a real socket: what it speaks, and how a request goes out."""

import asyncio
import json

import pytest
from harness.modern_bench import (
    END,
    LONG,
    MANY,
    NOTE,
    OK,
    SPOKEN,
    STREAM,
    all_of,
    answer,
    asked,
    chunk,
    failed,
    failure,
    hanging,
    soon,
)
from harness.raw_http import Peer, always, saying
from trunkline.mux.errors import SessionLost, TrunklineError, UpstreamUnreachable
from trunkline.mux.routing import LEGACY, MODERN
from trunkline.transports.event_stream import encode
from trunkline.transports.upstream import backoff, modern_http

pytestmark = pytest.mark.anyio


async def test_g10_headers_that_are_kept_encoded_are_bounded_in_number_and_size() -> None:
    async with asked(always()) as here:
        for n in range(2 * modern_http.MAX_KEPT):
            assert here.upstream._block({"X-N": str(n)}).headers["X-N"] == str(n)
            assert len(here.upstream._blocks) <= modern_http.MAX_KEPT
        kept = len(here.upstream._blocks)
        here.upstream._block({"X-N": "n" * modern_http.MAX_KEPT_HEADERS})
        assert len(here.upstream._blocks) == kept


# What a server speaks.


async def test_l29_a_server_is_asked_once_however_many_wait() -> None:
    requests: list[tuple[str, dict[str, str], bytes]] = []

    async with asked(always(answer(SPOKEN), seen=requests)) as here:
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
            [
                STREAM,
                chunk(encode(b"", id="1")),
                chunk(encode(NOTE)),
                chunk(encode(b"soon", name="ping")),
                chunk(encode(json.dumps(SPOKEN).encode())),
            ],
            (MODERN,),
        ),
        ([STREAM, chunk(encode(b"{")), END], LEGACY),
        ([STREAM, END], LEGACY),
        ([answer(failure(-32601), 404)], LEGACY),
        ([answer(b"Missing session", 400, "text/plain")], LEGACY),
        ([answer(NOTE)], LEGACY),
        ([answer(b"<html>", 200, "text/html")], LEGACY),
        ([answer(MANY)], LEGACY),
        ([answer(LONG)], LEGACY),
        ([STREAM, chunk(encode(json.dumps(MANY).encode())), END], LEGACY),
    ],
)
async def test_what_the_answer_to_the_probe_tells(pieces: list[bytes], revisions: tuple[str, ...]) -> None:
    async with asked(always(*pieces)) as here:
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
        assert caught.value.code == -31001
        assert caught.value.data["executed"] == "no", "what waited was not sent"
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
        ([answer(failure(-32601), 404)], False),
        ([answer(failure(-32601))], False),
        ([answer(failure(-32603))], False),
        ([answer(failure(-32600), 400)], True),
        ([answer({**failure(-32000), "id": None}, 400)], True),
        ([answer({**failure(-32600), "id": "server-error"}, 400)], True),
        ([answer(failure(-32603), 500)], True),
        ([STREAM, chunk(encode(json.dumps(OK).encode())), END], False),
        ([answer(failure(-32022), 400)], True),
        ([answer(b"no such session", 404, "text/plain")], True),
        ([b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"], True),
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


@pytest.mark.parametrize("second", [b"", answer(b"busy", 429)])
async def test_l29_what_a_server_spoke_holds_until_it_says_otherwise(second: bytes) -> None:
    discoveries = [answer(failure(-32601)), second, answer(SPOKEN)]

    async def serve(peer: Peer) -> None:
        while True:
            _, headers, _ = await peer.request()
            said = discoveries.pop() if headers["mcp-method"] == "server/discover" else answer(b"busy", 429)
            await peer.say(said)
            if not said:
                return

    async with asked(serve) as here:
        for found in ((MODERN,), (MODERN,), LEGACY):
            assert await soon(here.upstream.revisions()) == found
            await failed(here.send(mcp_method="tools/call"))


async def test_l29_what_a_server_spoke_is_used_without_asking_for_a_while_where_it_does_not_say_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff, "FIRST_SECONDS", backoff.LAST_SECONDS)
    discoveries = [answer(SPOKEN)]

    async def serve(peer: Peer) -> None:
        while True:
            _, headers, _ = await peer.request()
            is_first = headers["mcp-method"] == "server/discover" and discoveries
            await peer.say(discoveries.pop() if is_first else answer(b"busy", 429))

    async with asked(serve) as here:
        for _ in range(20):
            assert await soon(here.upstream.revisions()) == (MODERN,)
            await failed(here.send(mcp_method="tools/call"))
        assert here.counts["upstream_requests", "up", "probe"] == 3, "the first, and two that failed"


async def test_l29_a_server_that_says_what_it_speaks_again_is_asked_as_soon_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff, "FIRST_SECONDS", backoff.LAST_SECONDS)
    busy = answer(b"busy", 429)
    discoveries = [answer(SPOKEN), busy, answer(SPOKEN), busy, busy]

    async def serve(peer: Peer) -> None:
        while True:
            _, headers, _ = await peer.request()
            await peer.say(discoveries.pop(0) if headers["mcp-method"] == "server/discover" else busy)

    async with asked(serve) as here:
        for _ in range(10):
            assert await soon(here.upstream.revisions()) == (MODERN,)
            await failed(here.send(mcp_method="tools/call"))
        assert here.counts["upstream_requests", "up", "probe"] == 5


@pytest.mark.parametrize(("spoken", "is_asked_again"), [(answer(SPOKEN), False), (answer(failure(-32601)), True)])
async def test_l29_that_no_session_opens_tells_something_of_a_server_of_sessions_alone(
    spoken: bytes, is_asked_again: bool
) -> None:
    async with asked(always(spoken)) as here:
        here.upstream.doubt_sessions()
        found = await soon(here.upstream.revisions())
        here.upstream.doubt_sessions()
        assert await soon(here.upstream.revisions()) == found
        assert here.counts["upstream_requests", "up", "probe"] == 1 + is_asked_again


async def test_l21_only_what_is_offered_of_it_is_told() -> None:
    both = {"jsonrpc": "2.0", "id": 1, "result": {"supportedVersions": ["2025-11-25", MODERN]}}
    async with asked(always(answer(both))) as here:
        here.upstream.offers = (MODERN,)
        first = asyncio.create_task(here.upstream.revisions())
        assert await soon(first) == (MODERN,)
        assert await here.upstream.revisions() == (MODERN,)


async def test_stopping_ends_the_waiting() -> None:
    async def serve(peer: Peer) -> None:
        await peer.closed()

    async with asked(serve) as here:
        waiting = asyncio.create_task(here.upstream.revisions())
        await asyncio.sleep(0)
        here.upstream.stop(UpstreamUnreachable("the gateway stopped", executed="no"))
        with pytest.raises(UpstreamUnreachable):
            await soon(waiting)


async def test_after_the_end_it_does_not_hold_what_a_server_spoke() -> None:
    async with asked(saying(answer(SPOKEN))) as here:
        assert await soon(here.upstream.revisions()) == (MODERN,)
        here.upstream.forget()
        waiting = asyncio.create_task(here.upstream.revisions())
        await asyncio.sleep(0)
        here.upstream.stop(UpstreamUnreachable("the gateway stopped", executed="no"))
        with pytest.raises(UpstreamUnreachable):
            await soon(waiting)


# The request.


async def test_a_request_goes_out_once_with_the_headers_that_it_was_given() -> None:
    requests: list[tuple[str, dict[str, str], bytes]] = []

    async with asked(always(answer(OK), seen=requests)) as here:
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


async def test_closing_the_client_breaks_what_is_under_way() -> None:
    serve, said, _ = hanging()
    async with asked(serve) as here:
        passage = here.send()
        await soon(said.wait())
        await here.upstream._http.close()
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
