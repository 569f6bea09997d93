"""One upstream session: its ids, what the server may send, and how it ends."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from harness.memory_wire import Exchange as Upstream
from harness.memory_wire import echo, message
from harness.muxing import ALICE, Bench, Client, begin, bench, settle
from trunkline.mux.channel import LOW_IDS, REST_SECONDS, Channel
from trunkline.mux.directory import ID_BLOCK
from trunkline.mux.errors import SessionLost, UpstreamFault, UpstreamUnreachable

pytestmark = pytest.mark.anyio


def only(at: Bench) -> Channel:
    [(server, made)] = at.pool.channels
    assert server == "x"
    return made


async def test_its_state_tells_where_it_stands() -> None:
    async with bench() as at:
        at.server.pause("initialize")
        beginning = asyncio.create_task(begin(at.pool))
        await at.server.reached("initialize")
        channel = only(at)
        states = [channel.state]
        at.server.let("initialize")
        client = Client((await beginning).workflow)
        states.append(channel.state)
        exchange = client.call()
        states.append(channel.state)
        assert (channel.inflight, channel.is_idle) == (1, False)
        at.server.session.exchanges[-1].answer()
        await client.answer(exchange)
        states.append(channel.state)
        at.server.pause("close")
        await at.pool.end(client.workflow, "deleted")
        states.append(channel.state)
        at.server.let("close")
        await at.closed()
        states.append(channel.state)
        assert states == ["opening", "idle", "active", "idle", "draining", "closed"]
        assert channel.close_reason == "deleted"
        assert at.counts["channels_closed", "x", "deleted"] == 1


async def test_a_connector_that_is_defective_fails_its_own_session_only(caplog: pytest.LogCaptureFixture) -> None:
    async with bench() as at:
        client = await at.client()
        at.server.unreachable = ValueError("a defect")  # type: ignore[assignment]
        with pytest.raises(UpstreamFault):
            await begin(at.pool)
        at.server.on_request = echo
        assert "result" in await client.answer(client.call())
    assert "the channel failed" in caplog.text


# Ids.


async def call(client: Client, times: int) -> None:
    for _ in range(times):
        await client.answer(client.call())


async def test_e4_the_next_block_of_ids_is_drawn_before_the_last_one_is_used_up() -> None:
    async with bench() as at:
        at.server.on_request = echo
        client = await at.client()
        await call(client, ID_BLOCK - LOW_IDS - 1)  # and the handshake took one
        await settle()
        assert at.directory.calls["draw_ids"] == 1
        at.directory.pause("draw_ids")
        await call(client, 1)
        await at.directory.reached("draw_ids", 2)
        await call(client, LOW_IDS)
        at.directory.let("draw_ids")
        await settle()
        await call(client, 2)
        ids = [int(exchange.id) for exchange in at.server.session.exchanges if exchange.request is not None]
        assert ids == list(range(1, ID_BLOCK + 3)), "in order, and none twice"


async def test_half_a_block_of_calls_is_sent_while_the_next_one_is_drawn() -> None:
    """At 3,000 calls a second that is a sixth of a second, which a database with two workers takes now and then."""
    async with bench() as at:
        at.server.on_request = echo
        client = await at.client()
        at.directory.pause("draw_ids")
        while at.directory.calls["draw_ids"] < 2:
            await call(client, 1)
            await settle()
        for _ in range(ID_BLOCK // 2):
            assert "result" in await client.answer(client.call())
        at.directory.let("draw_ids")


async def test_without_an_id_a_call_is_refused_and_the_session_goes_on() -> None:
    async with bench(max_inflight_per_workflow=2000, max_inflight_per_channel=2000) as at:
        client = await at.client()
        at.directory.pause("draw_ids")
        exchanges = [client.call() for _ in range(ID_BLOCK)]
        refused = await client.answer(exchanges.pop())
        assert refused["error"]["data"] == {"limit": "upstream_ids"}
        at.directory.let("draw_ids")
        await at.directory.reached("draw_ids", 2)
        await settle()
        at.server.on_request = echo
        assert "result" in await client.answer(client.call())
        for _ in exchanges:
            client.leave()


async def test_a_directory_that_fails_for_a_while_costs_no_session() -> None:
    async with bench() as at:
        at.server.on_request = echo
        client = await at.client()
        at.directory.failing["draw_ids"] = ConnectionError("the directory is away")
        await call(client, ID_BLOCK - 1)
        refused = await client.answer(client.call())
        assert refused["error"]["data"] == {"limit": "upstream_ids"}
        await settle()
        del at.directory.failing["draw_ids"]
        tried = at.directory.calls["draw_ids"]
        await client.answer(client.call())
        await at.directory.reached("draw_ids", tried + 1)
        await settle()
        assert "result" in await client.answer(client.call())
        assert len(at.server.sessions) == 1


async def test_a_session_whose_record_is_gone_ends_when_it_needs_ids() -> None:
    async with bench() as at:
        at.server.on_request = echo
        client = await at.client()
        await at.directory.overtake(client.workflow.record.session_id, remove=True, heard=False)
        await call(client, ID_BLOCK - LOW_IDS)
        await at.ended("upstream_lost")
        await at.closed()


async def test_the_calls_of_one_channel_are_limited_tombstones_included() -> None:
    async with bench(max_inflight_per_channel=2) as at:
        client = await at.client()
        for n in range(2):
            client.call(id=b"%d" % n)
        refused = await client.answer(client.call(id=b"9"))
        assert refused["error"]["data"] == {"limit": "max_inflight_per_channel"}
        client.leave()
        client.leave()


# What the server sends.


async def test_a_ping_of_the_server_is_answered_here() -> None:
    async with bench() as at:
        await at.client()
        at.server.session.tell(message("ping", id="p"))
        assert (await at.server.got("response")).json == {"jsonrpc": "2.0", "id": "p", "result": {}}


@pytest.mark.parametrize("text", [b"no json", b"[]", b'{"id":1}', b'{"jsonrpc":"2.0"}', b"\xff", b"[" * 10_000])
async def test_g9_what_is_no_message_fails_the_call_on_whose_stream_it_came_and_no_other(text: bytes) -> None:
    async with bench() as at:
        client = await at.client()
        hit, other = client.call(id=b"1"), client.call(id=b"2")
        first, second = at.server.of("tools/call")
        at.server.session.tell(text)
        first.say(text)
        second.answer()
        assert (await client.answer(hit))["error"]["code"] == -32603
        assert "result" in await client.answer(other)
        assert at.counts["upstream_faults", "x"] == 2


STRAY: dict[str, tuple[Callable[[], bytes], str]] = {
    "a response to nothing": (lambda: b'{"jsonrpc":"2.0","id":4711,"result":{}}', "unknown_response"),
    "progress of nothing": (lambda: message("notifications/progress", {"progressToken": 4711}), "unknown_progress"),
    "a cancel of nothing": (lambda: message("notifications/cancelled", {"requestId": 4711}), "unknown_cancel"),
}


@pytest.mark.parametrize("stray", STRAY)
async def test_what_names_nothing_is_dropped_and_counted(stray: str) -> None:
    async with bench() as at:
        client = await at.client()
        exchange = client.call()
        make, reason = STRAY[stray]
        at.server.session.tell(make())
        assert at.counts[reason, "x"] == 1
        at.server.of("tools/call")[0].answer()
        assert len(await client.answers(exchange)) == 1


async def test_a_second_answer_to_one_call_is_dropped() -> None:
    async with bench() as at:
        client = await at.client()
        exchange = client.call()
        upstream = at.server.of("tools/call")[0]
        upstream.say(b'{"jsonrpc":"2.0","id":%s,"result":{"n":1}}' % upstream.id)
        upstream.say(b'{"jsonrpc":"2.0","id":%s,"result":{"n":2}}' % upstream.id)
        assert [answer["result"] for answer in await client.answers(exchange)] == [{"n": 1}]
        assert at.counts["unknown_response", "x"] == 1


# The end.


async def break_off(at: Bench, upstream: Upstream, how: str) -> dict[str, Any]:
    match how:
        case "cut":
            upstream.cut()
        case "unreachable":
            upstream.cut(UpstreamUnreachable("HTTP 503", executed="no"))
    return {"cut": {"executed": "unknown"}, "unreachable": {"executed": "no"}}[how]


@pytest.mark.parametrize("how", ["cut", "unreachable"])
async def test_an_exchange_that_breaks_fails_its_own_call_only(how: str) -> None:
    async with bench() as at:
        client = await at.client()
        hit, other = client.call(id=b"1"), client.call(id=b"2")
        first, second = at.server.of("tools/call")
        data = await break_off(at, first, how)
        assert (await client.answer(hit))["error"]["data"] == data
        second.answer()
        assert "result" in await client.answer(other)


async def test_the_first_cause_of_an_end_wins() -> None:
    async with bench() as at:
        client = await at.client(ALICE)
        channel = only(at)
        exchange = client.call()
        for text in ("first", "second"):
            channel.lost(SessionLost(text, executed="unknown"))
        await at.pool.end(client.workflow, "deleted")
        assert "first" in (await client.answer(exchange))["error"]["message"]
        await at.ended("upstream_lost")
        await at.closed()
        assert channel.close_reason == "session_lost"
        assert at.counts["workflows_closed", "deleted"] == 0


async def test_a_drained_channel_takes_nothing_new_and_closes_after_its_last_answer() -> None:
    async with bench() as at:
        client = await at.client()
        channel = only(at)
        exchange = client.call(id=b"1")
        channel.drain(SessionLost("drained", executed="unknown"))
        assert (channel.state, channel.is_open, channel.is_closing) == ("draining", False, False)
        late = await client.answer(client.call(id=b"2"))
        assert late["error"]["data"] == {"executed": "no"}
        at.server.of("tools/call")[0].answer({"n": 1})
        assert (await client.answer(exchange))["result"] == {"n": 1}
        await at.closed()
        assert channel.is_closing


async def test_nothing_reaches_a_session_that_is_closing() -> None:
    async with bench() as at:
        client = await at.client()
        at.server.pause("close")
        session, before = at.server.session, len(at.server.session.exchanges)
        await at.pool.end(client.workflow, "deleted")
        await at.server.reached("close")
        only(at).tell(message("notifications/roots/list_changed"))
        session.tell(message("ping", id="late"))
        at.server.let("close")
        await at.closed()
        assert len(session.exchanges) == before


async def test_a_server_with_nothing_to_tell_is_listened_to_while_a_client_is_there() -> None:
    async with bench(idle_timeout=10_000) as at:
        at.server.result = {**at.server.result, "capabilities": {"tools": {}}}
        client = await at.client()
        session = at.server.session
        assert session.is_listening, "it may tell more than it declared"
        at.clock.advance(REST_SECONDS)
        await at.server.until(lambda: not session.is_listening)
        exchange = client.call()
        assert session.is_listening
        session.exchanges[-1].answer()
        await client.answer(exchange)
        at.clock.advance(REST_SECONDS)
        await at.server.until(lambda: not session.is_listening)
        reader = client.workflow.streams.attach_standalone()
        assert session.is_listening
        at.clock.advance(REST_SECONDS * 2)
        await asyncio.sleep(0.1)  # some looks at what is due
        assert session.is_listening
        reader.close()
        at.clock.advance(REST_SECONDS)
        await at.server.until(lambda: not session.is_listening)


async def test_a_server_is_listened_to_for_a_while_after_a_handshake_that_took_long() -> None:
    async with bench(idle_timeout=10_000, request_timeout=100) as at:
        at.server.result = {**at.server.result, "capabilities": {"tools": {}}}
        at.server.pause("initialize")
        beginning = asyncio.create_task(begin(at.pool))
        await at.server.reached("initialize")
        at.clock.advance(REST_SECONDS - 1)
        at.server.let("initialize")
        await beginning
        at.clock.advance(REST_SECONDS - 1)
        await at.swept()
        session = at.server.session
        assert session.is_listening
        at.clock.advance(1)
        await at.server.until(lambda: not session.is_listening)


PROGRESS = {"progressToken": 1, "progress": 1}


@pytest.mark.parametrize(
    ("told", "is_heard_on"),
    [
        (message("ping", id="p"), True),
        (message("notifications/message", {"level": "info", "data": "x"}), True),
        (message("notifications/progress", PROGRESS), False),
        (b'{"jsonrpc":"2.0","id":999,"result":{}}', False),
    ],
)
async def test_a_server_that_told_something_unasked_though_it_declared_nothing_is_always_listened_to(
    told: bytes, is_heard_on: bool
) -> None:
    async with bench(idle_timeout=10_000) as at:
        at.server.result = {**at.server.result, "capabilities": {"tools": {}}}
        await at.client()
        session = at.server.session
        session.tell(told)
        at.clock.advance(REST_SECONDS * 2)
        await at.swept()
        assert session.is_listening is is_heard_on


async def test_a_server_that_may_tell_something_is_always_listened_to() -> None:
    async with bench(idle_timeout=10_000) as at:
        await at.client()
        at.clock.advance(REST_SECONDS * 2)
        await asyncio.sleep(0.1)  # some looks at what is due
        assert at.server.session.is_listening
