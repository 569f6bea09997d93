"""One upstream session: where it stands, what the server may send, and how it ends."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from harness.memory_wire import Exchange as Upstream
from harness.memory_wire import echo, message
from harness.muxing import ALICE, Bench, Client, begin, bench, notification
from trunkline.mux.channel import Channel
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


async def test_g9_what_is_nested_to_the_bound_of_the_parser_ends_nothing() -> None:
    async with bench() as at:
        client = await at.client()
        for depth in (*range(700, 1100), *range(9_700, 10_100)):  # of Python 3.11, and of later ones
            nested = b'{"a":' * depth + b"1" + b"}" * depth
            at.server.session.tell(b'{"jsonrpc":"2.0","method":"notifications/progress","params":%s}' % nested)
        assert at.counts["upstream_faults", "x"] > 0
        at.server.on_request = echo
        assert "result" in await client.answer(client.call())


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
        error = (await client.answer(hit))["error"]
        assert (error["code"], error["data"]) == (-32603, {"executed": "unknown"})
        assert "result" in await client.answer(other)
        assert at.counts["upstream_faults", "x"] == 2


@pytest.mark.parametrize("line", [b"Listening on stdio", b'50% {"jsonrpc":"2.0","id":2,"result":{}}', b'{"id":2}'])
async def test_what_a_server_prints_that_names_no_call_is_in_the_log(
    line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench() as at:
        client = await at.client()
        pending = client.call(id=b"1")
        at.server.session.tell(line)
        [record] = [record for record in caplog.records if record.name == Channel.__module__]
        assert record.getMessage().startswith("the server sent what is no JSON-RPC message: ")
        assert (record.levelname, vars(record)["server"]) == ("WARNING", "x")
        at.server.of("tools/call")[0].answer()
        assert "result" in await client.answer(pending)


async def test_g9_a_server_that_prints_all_the_time_is_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    async with bench() as at:
        await at.client()
        for n in range(3):
            at.server.session.tell(b"line %d" % n)
        assert len([record for record in caplog.records if record.name == Channel.__module__]) == 1
        assert at.counts["upstream_faults", "x"] == 3


@pytest.mark.parametrize(
    "members",
    [b'"jsonrpc":"2.0"', b'"jsonrpc":"2.0","result":null', b'"jsonrpc":"2.0","result":[],"error":{}', b'"result":{}'],
)
@pytest.mark.parametrize("spelled", [b"%s", b'"%s"'])
async def test_e7_an_answer_that_is_no_response_fails_the_call_that_it_names(members: bytes, spelled: bytes) -> None:
    """Where nothing else tells whose answer it is."""
    async with bench() as at:
        client = await at.client()
        hit, other = client.call(id=b"1"), client.call(id=b"2")
        first, second = at.server.of("tools/call")
        at.server.session.tell(b'{"id":%s,%s}' % (spelled % first.id, members))
        assert (await client.answer(hit))["error"]["code"] == -32603
        assert at.counts["upstream_faults", "x"] == 1
        first.answer()
        assert at.counts["unknown_response", "x"] == 1
        second.answer()
        assert "result" in await client.answer(other)


async def test_e7_an_answer_that_is_no_response_goes_by_its_id_and_not_by_the_stream_on_which_it_came() -> None:
    async with bench() as at:
        at.server.is_movable = True
        client = await at.client()
        hit, other = client.call(id=b"1"), client.call(id=b"2")
        first, second = at.server.of("tools/call")
        second.say(b'{"jsonrpc":"2.0","id":%s,"result":null}' % first.id)
        assert (await client.answer(hit))["error"]["code"] == -32603
        assert (first.is_cut, second.is_cut) == (True, False)
        second.answer()
        assert "result" in await client.answer(other)


async def test_g10_an_answer_that_is_no_response_cuts_what_carries_its_call_also_where_that_was_given_up() -> None:
    async with bench() as at:
        at.server.is_movable = True
        client = await at.client()
        client.call(id=b"1")
        client.workflow.notify(notification("notifications/cancelled", {"requestId": 1}), {})
        await at.server.got("notifications/cancelled")
        [upstream] = at.server.of("tools/call")
        assert not upstream.is_cut
        at.server.session.tell(b'{"jsonrpc":"2.0","id":%s,"result":null}' % upstream.id)
        assert upstream.is_cut
        client.leave()


async def test_e7_a_server_whose_question_is_no_message_fails_no_call_of_its_id() -> None:
    async with bench() as at:
        client = await at.client()
        exchange = client.call()
        [upstream] = at.server.of("tools/call")
        at.server.session.tell(b'{"id":%s,"method":"roots/list"}' % upstream.id)
        upstream.answer()
        assert "result" in await client.answer(exchange)


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


async def test_a_drained_channel_closes_also_where_its_last_answer_is_no_response() -> None:
    async with bench() as at:
        client = await at.client()
        channel = only(at)
        exchange = client.call()
        channel.drain(SessionLost("drained", executed="unknown"))
        at.server.of("tools/call")[0].say(b"no json")
        assert (await client.answer(exchange))["error"]["code"] == -32603
        assert channel.is_closing
        await at.closed()


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
