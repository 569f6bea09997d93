"""The answer to a request without a session, from a server on a real socket: its forms, its bounds, its end."""

import asyncio
import json
from typing import Any

import pytest
from harness.modern_bench import (
    END,
    LONG,
    MANY,
    NOTE,
    OK,
    STREAM,
    Here,
    all_of,
    answer,
    asked,
    asking,
    chunk,
    failed,
    failure,
    hanging,
    soon,
)
from harness.ports import free_port
from harness.raw_http import PATIENCE, Peer, RawServer, always, saying
from trunkline.mux import modern
from trunkline.mux.envelope import parse
from trunkline.mux.errors import Cancelled, SessionLost, TimedOut, TrunklineError, UpstreamFault, UpstreamUnreachable
from trunkline.mux.routing import LEGACY, MODERN
from trunkline.mux.statistics import Statistics
from trunkline.transports.event_stream import encode
from trunkline.transports.upstream import answers, modern_passage
from trunkline.transports.upstream.modern_passage import Form, SlowClient

pytestmark = pytest.mark.anyio

PROGRESS = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}'


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
    async with asked(always(answer(body, status, "Application/JSON; charset=utf-8"))) as here:
        passage = here.send()
        assert await soon(passage.form()) == Form(form, body)
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
    async with asked(always(reply)) as here:
        error = await failed(here.send())
        assert isinstance(error, kind)
        assert error.code == code
        assert error.data["executed"] == ("no" if b"HTTP/1.1 40" in reply and kind is not UpstreamFault else "unknown")


async def test_a_large_body_is_as_whole_as_a_small_one() -> None:
    body = b'{"jsonrpc":"2.0","id":1,"result":{"x":"' + b"a" * 1_000_000 + b'"}}'
    async with asked(always(answer(body))) as here:
        assert await soon(here.send().form()) == Form(200, body)


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (answer(b'{"jsonrpc":"2.0","id":1,"result":{"x":"' + b"a" * 200_000 + b'"}}')[:-1], SessionLost, -31002),
        (answer(b"{" + b" " * 200_000 + b"x"), UpstreamFault, -32603),
        (answer(b'{"jsonrpc":"2.0","id":2,"result":{"x":"' + b"a" * 200_000 + b'"}}'), UpstreamFault, -32603),
    ],
)
async def test_g9_a_large_body_that_is_no_answer_is_a_clear_error(
    body: bytes, kind: type[TrunklineError], code: int
) -> None:
    async with asked(saying(body, ends=True)) as here:
        error = await failed(here.send())
        assert isinstance(error, kind)
        assert error.code == code


async def test_e20_a_large_error_has_its_status_too() -> None:
    body = json.dumps({**failure(-32601), "x": "a" * 200_000}).encode()
    async with asked(always(answer(body))) as here:
        assert await soon(here.send().form()) == Form(404, body)


# Whose an answer is.

ERROR = {"code": -32603, "message": "no"}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("asked_by", "answered", "is_own"),
    [
        (b"1", {"id": 1, "result": {}}, True),
        (b"1", {"id": "1", "result": {}}, True),
        (b"1", {"id": "1", "error": ERROR}, True),
        (b"1", {"id": None, "error": ERROR}, True),
        (b"1", {"error": ERROR}, True),
        (b'"\\u0061"', {"id": "a", "result": {}}, True),
        (b"9007199254740993", {"id": 9007199254740993, "result": {}}, True),
        (b"9007199254740993", {"id": 9007199254740992, "result": {}}, False),
        (b"1", {"id": 2, "result": {}}, False),
        (b"1", {"id": "server-error", "error": ERROR}, False),
        (b'"a"', {"id": "A", "result": {}}, False),
        (b'"a"', {"id": 1, "error": ERROR}, False),
    ],
)
async def test_g1_e8_an_answer_is_the_one_to_this_request_and_carries_its_id(
    asked_by: bytes, answered: dict[str, Any], is_own: bool, is_stream: bool
) -> None:
    text = json.dumps({"jsonrpc": "2.0", **answered}).encode()
    pieces = [STREAM, chunk(encode(text)), END] if is_stream else [answer(text)]
    async with asked(always(*pieces)) as here:
        passage = here.send(id=asked_by)
        if not is_own:
            with pytest.raises(UpstreamFault):
                await all_of(passage)
            assert passage.outcome == "upstream_fault"
            return
        found = (await soon(passage.form())).whole
        found = (await all_of(passage)).partition(b"data: ")[2].strip() if found is None else found
        members = parse(found, limit=10_000).members
        assert bytes(members["id"]) == asked_by
        assert passage.outcome == ("error" if "error" in members else "ok")


async def test_l21_a_discovery_names_what_is_served_and_nothing_else() -> None:
    told = {"supportedVersions": ["2027-01-01", MODERN, "2025-11-25"], "instructions": "x", "n": 1.50}
    reply = answer({"jsonrpc": "2.0", "id": 1, "result": told})
    async with asked(always(reply)) as here:
        for offers, kept in (((MODERN,), [MODERN]), ((*LEGACY, MODERN), [MODERN, "2025-11-25"])):
            here.upstream.offers = offers
            found = (await soon(here.send(modern.DISCOVER).form())).whole
            assert json.loads(found)["result"] == {**told, "supportedVersions": kept}
            as_it_came = (await soon(here.send("tools/call").form())).whole
            assert as_it_came is not None
            assert reply.endswith(as_it_came)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("told", "why"), [(MANY, "too many members"), (LONG, "too long")])
async def test_g10_a_discovery_of_too_much_is_a_fault_of_the_server(
    told: dict[str, Any], why: str, is_stream: bool
) -> None:
    pieces = [STREAM, chunk(encode(json.dumps(told).encode())), END] if is_stream else [answer(told)]
    async with asked(always(*pieces)) as here:
        passage = here.send(modern.DISCOVER)
        with pytest.raises(UpstreamFault, match=why):
            await all_of(passage)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_g10_a_body_and_an_event_are_bounded(monkeypatch: pytest.MonkeyPatch, is_stream: bool) -> None:
    monkeypatch.setattr(modern_passage, "MAX_EVENT_BYTES", 100_000)
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
    monkeypatch.setattr(modern_passage, "MAX_EVENT_BYTES", 100_000)
    serve, _, left = hanging(answer(b" " * 100_001)[:200])
    async with asked(serve) as here:
        assert isinstance(await failed(here.send()), UpstreamFault)
        await soon(left.wait())


# A stream.


async def test_h5_events_are_passed_on_one_by_one_without_ids() -> None:
    go_on = asyncio.Event()
    odd = b'event: vendor\r\nid: 8\r\nretry: 5\r\ndata: {"jsonrpc":"2.0",\r\ndata: "method":"x"}\r\n\r\n'
    none = b"event: ping\ndata: 2026-11-30\n\n"
    response = b'{"jsonrpc":"2.0", "id":1,"result":{"n":1.50}}'

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM, chunk(b": hello\n\n"), chunk(encode(b"", id="1")), chunk(encode(NOTE, id="2")))
        await go_on.wait()
        await peer.say(chunk(odd + none), chunk(encode(response, id="3") + encode(NOTE)), END)

    async with asked(serve) as here:
        passage = here.send()
        assert await soon(passage.form()) == Form(200)
        assert await soon(passage.next(PATIENCE)) == b"event: message\ndata: " + NOTE + b"\n\n"
        assert await passage.next(0) == b""
        go_on.set()
        assert await all_of(passage) == (
            b'event: vendor\ndata: {"jsonrpc":"2.0",\ndata: "method":"x"}\n\n'
            b"event: ping\ndata: 2026-11-30\n\n"
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
    async with asked(saying(STREAM, chunk(encode(NOTE)), *rest, ends=True)) as here:
        passage = here.send()
        with pytest.raises(kind):
            await all_of(passage)
        assert passage.outcome == kind.reason


async def test_an_error_on_a_stream_is_an_error() -> None:
    async with asked(always(STREAM, chunk(encode(json.dumps(failure(-32603)).encode())), END)) as here:
        passage = here.send()
        await all_of(passage)
        assert passage.outcome == "error"


async def test_a_connection_is_used_again_after_a_stream_that_ended() -> None:
    async with asked(always(STREAM, chunk(encode(json.dumps(OK).encode())) + END)) as here:
        for _ in range(3):
            passage = here.send()
            await all_of(passage)
            passage.close()
        assert here.server.connections == 1


async def test_a_stream_that_stays_open_after_its_response_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LINGER_SECONDS", 0)
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
    async with asked(always(STREAM, chunk(encode(NOTE)), END)) as here:
        passage = here.send(modern.LISTEN)
        assert NOTE in await all_of(passage)
        assert passage.outcome == "ok"


# Its end.


@pytest.mark.parametrize("pieces", [(), (STREAM,), (STREAM, chunk(encode(NOTE))), (answer(b" " * 99_999)[:-1],)])
async def test_e13_closing_cuts_the_exchange(pieces: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LINGER_SECONDS", 2 * PATIENCE)
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

    async with asked(serve, timeout=1) as here:
        listening = here.send(modern.LISTEN, mcp_method=modern.LISTEN)
        assert await soon(listening.next(PATIENCE))
        error = await failed(here.send(mcp_method="tools/call"))
        assert isinstance(error, TimedOut)
        assert error.data == {"executed": "unknown"}
        assert not listening.is_over
        listening.close()


@pytest.mark.parametrize("babble", [b": ping\r\n\r\n", encode(NOTE), encode(PROGRESS)])
async def test_e17_neither_comments_nor_logs_nor_progress_keep_a_call_without_end(
    monkeypatch: pytest.MonkeyPatch, babble: bytes
) -> None:
    monkeypatch.setattr(modern_passage, "EXTENSIONS", 2)
    left = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM)
        closed = asyncio.ensure_future(peer.closed())
        while not closed.done():
            await peer.say(chunk(babble))
            await asyncio.wait([closed], timeout=0.01)
        left.set()

    async with asked(serve, timeout=0.5) as here:
        passage = here.send()
        with pytest.raises(TimedOut):
            await all_of(passage)
        await soon(left.wait())


async def test_e17_a_body_that_trickles_does_not_keep_a_call_without_end() -> None:
    left = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(b" " * 100_000)[:-100_000])
        closed = asyncio.ensure_future(peer.closed())
        while not closed.done():
            await peer.say(b" ")
            await asyncio.wait([closed], timeout=0.01)
        left.set()

    async with asked(serve, timeout=0.5) as here:
        assert isinstance(await failed(here.send()), TimedOut)
        await soon(left.wait())


async def test_e17_progress_extends_a_call() -> None:
    go_on, told = asyncio.Event(), asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM)
        await go_on.wait()
        await peer.say(chunk(encode(PROGRESS)))
        await told.wait()
        await peer.say(chunk(encode(json.dumps(OK).encode())), END)

    async with asked(serve) as here:
        passage = here.send()
        await soon(passage.form())
        first = passage.deadline
        go_on.set()
        assert b"progress" in await soon(passage.next(PATIENCE))
        assert first < passage.deadline <= first + PATIENCE
        told.set()
        await all_of(passage)
        assert passage.outcome == "ok"


async def test_a_stream_that_falls_silent_says_so() -> None:
    serve, _, left = hanging(STREAM, chunk(encode(NOTE)))
    async with asked(serve, timeout=0.5) as here:
        passage = here.send()
        with pytest.raises(TimedOut):
            await all_of(passage)
        await soon(left.wait())


async def test_one_event_of_the_largest_size_waits_for_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modern_passage, "UNREAD_BYTES", 1_000)
    event = encode(b'{"jsonrpc":"2.0","id":1,"result":{"x":"' + b"x" * 1_000 + b'"}}')
    async with asked(always(STREAM, chunk(event), END)) as here:
        assert await all_of(here.send()) == event


async def test_g10_what_a_client_does_not_take_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modern_passage, "UNREAD_BYTES", 100_000)
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
        passage = Here(RawServer(always()), upstream, Statistics()).send()
        error = await failed(passage)
        assert (error.code, error.data) == (-31001, {"executed": "no"})
        with pytest.raises(UpstreamUnreachable):
            await soon(upstream.revisions())


async def test_g8_subscriptions_that_have_not_begun_are_told_why_they_will_not() -> None:
    serve, said, left = hanging()
    async with asked(serve) as here:
        passage = here.send(modern.LISTEN)
        await soon(said.wait())
        passage.stop(SessionLost("stopped", executed="unknown"))
        assert isinstance(await failed(passage), SessionLost)
        await soon(left.wait())


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
