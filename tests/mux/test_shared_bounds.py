"""What a shared session is bounded by, and that what one workflow does costs the others nothing."""

import anyio
import pytest
from harness.memory_wire import message
from harness.muxing import ALICE, PATIENCE, begin, bench, initialize, notification, settle, some
from trunkline.mux.envelope import parse
from trunkline.mux.errors import InvalidRequest, Overloaded
from trunkline.mux.limits import MAX_BODY_BYTES, EventLogLimits

pytestmark = pytest.mark.anyio

CALLS = "tools/call"
SUBSCRIBE = "resources/subscribe"


async def test_g10_one_users_sessions_are_bounded_whatever_they_are_opened_with() -> None:
    async with bench(reuse="user", max_channels_per_user=2) as at:
        for n in range(6):
            capabilities = {"experimental": {str(n): {}}}
            client = await at.client(ALICE, message=initialize(capabilities=capabilities))
            await at.pool.end(client.workflow, "deleted")
        await at.server.until(lambda: len(at.server.live) <= 2)


async def test_g10_what_one_user_shares_on_another_server_takes_no_room() -> None:
    async with bench(reuse="user", max_channels_per_user=1) as at:
        there = await at.client(ALICE, server="y")
        await at.pool.end(there.workflow, "deleted")
        client = await at.client(ALICE)
        call = client.call()
        (await at.server.got(CALLS)).answer()
        assert "result" in await client.answer(call)
        assert len(at.other.live) == 1, "it waits there for the next one"
        with pytest.raises(Overloaded) as refused:
            await at.client(ALICE, message=initialize(capabilities={"experimental": {"other": {}}}))
        assert refused.value.limit == "max_channels_per_user"


async def test_a_workflow_ends_in_order_though_its_session_is_full() -> None:
    async with bench(reuse="user", max_inflight_per_channel=2) as at:
        client = await at.client(ALICE, key="k")
        subscribed = client.call({"uri": "file:///a"}, method=SUBSCRIBE)
        (await at.server.got(SUBSCRIBE)).answer()
        await client.answer(subscribed)
        calls = [client.call(id=b"%d" % n) for n in (1, 2)]
        await at.server.got(CALLS, 2)
        await at.pool.end(client.workflow, "deleted")
        for call in calls:
            assert (await client.answer(call))["error"]["code"] == -31002
        with anyio.fail_after(PATIENCE):
            assert (await begin(at.pool, ALICE, key="k")).state == "reset"


async def test_what_one_workflow_gave_up_costs_the_others_nothing() -> None:
    async with bench(reuse="user", max_inflight_per_channel=2) as at:
        one, two = await at.client(ALICE), await at.client(ALICE)
        given_up = [one.call(id=b"%d" % n) for n in (1, 2)]
        await at.server.got(CALLS, 2)
        for n in (1, 2):
            one.workflow.notify(notification("notifications/cancelled", {"requestId": n}), {})
        call = two.call()
        (await at.server.got(CALLS, 3)).answer()
        assert "result" in await two.answer(call)
        for exchange in given_up:
            await one.answer(exchange)


async def test_a_session_beside_the_first_brings_nothing_twice_and_has_its_log_level() -> None:
    async with bench(reuse="user", max_inflight_per_channel=2) as at:
        client = await at.client(ALICE)
        for method, params in ((SUBSCRIBE, {"uri": "file:///a"}), ("logging/setLevel", {"level": "debug"})):
            asked = client.call(params, method=method)
            (await at.server.got(method)).answer()
            await client.answer(asked)
        calls = [client.call(id=b"%d" % n) for n in range(3)]
        level = await at.server.got("logging/setLevel", 2)
        assert level.session is at.server.sessions[1]
        assert level.json["params"] == {"level": "debug"}
        level.answer()
        assert not at.server.sessions[1].of(SUBSCRIBE)
        assert [session.is_listening for session in at.server.sessions] == [True, False]
        for n in range(3):
            (await at.server.got(CALLS, n + 1)).answer()
        for call in calls:
            await client.answer(call)


async def test_r6_a_session_beside_the_first_tells_each_workflow_from_its_own_level_on() -> None:
    async with bench(reuse="user", max_inflight_per_channel=2) as at:
        at.server.on_request = lambda exchange: exchange.kind == "logging/setLevel" and exchange.answer()
        verbose, calm = await at.client(ALICE), await at.client(ALICE)
        for client, level in ((verbose, "debug"), (calm, "error")):
            await client.answer(client.call({"level": level}, method="logging/setLevel"))
        full = [verbose.call(id=b"%d" % n) for n in range(2)]
        call = calm.call()
        upstream = await at.server.got(CALLS, 3)
        beside = at.server.sessions[1]
        assert upstream.session is beside
        for level in ("debug", "error"):
            upstream.say(message("notifications/message", {"level": level, "data": level}))
        upstream.answer()
        told = [one for one in await calm.answers(call) if "method" in one]
        assert [one["params"]["level"] for one in told] == ["error"]
        beside.deliver(message("notifications/tools/list_changed"), None)
        assert not at.counts["unattributed", "notifications/tools/list_changed"], "the first one brings that as well"
        beside.deliver(message("notifications/message", {"level": "error", "data": "whose?"}), None)
        assert at.counts["unattributed", "notifications/message"] == 1
        for exchange in at.server.of(CALLS)[:2]:
            exchange.answer()
        for client_call in full:
            await verbose.answer(client_call)


async def test_what_is_told_to_a_session_anew_is_no_workflows_own() -> None:
    async with bench(reuse="user", on_request=lambda exchange: exchange.answer()) as at:
        one, two = await at.client(ALICE), await at.client(ALICE)
        await two.answer(two.call({"uri": "file:///b"}, method=SUBSCRIBE))
        at.server.session.forget()
        at.server.on_request = None
        call = two.call()
        again = await at.server.got(SUBSCRIBE, 2)
        await at.pool.end(one.workflow, "deleted")
        await settle()
        assert not at.server.of("notifications/cancelled")
        again.answer()
        (await at.server.got(CALLS)).answer()
        assert "result" in await two.answer(call)


async def test_a_refused_level_is_asked_for_again() -> None:
    async with bench(reuse="user", on_request=lambda exchange: exchange.refuse()) as at:
        client = await at.client(ALICE)
        for _ in range(2):
            assert "error" in await client.answer(client.call({"level": "debug"}, method="logging/setLevel"))
        assert len(at.server.of("logging/setLevel")) == 2


async def test_a_workflow_that_ends_while_all_are_told_takes_nothing_from_the_others() -> None:
    async with bench(reuse="user", event_log=EventLogLimits(events=3)) as at:
        silent, reading = await at.client(ALICE), await at.client(ALICE)
        unread = silent.workflow.streams.attach_standalone()
        reader = reading.workflow.streams.attach_standalone()
        await reader.next(0)
        heard = 0
        for _ in range(6):
            at.server.session.tell(message("notifications/tools/list_changed"))
            heard += len(await reader.next(0) or [])
        assert at.counts["workflows_closed", "event_log_overflow"] == 1
        assert heard == 6
        unread.close()
        reader.close()


@pytest.mark.parametrize("name", ["ID", "Id", "METHOD", "Params"])
async def test_e26_no_workflow_names_anothers_request_by_another_spelling(name: str) -> None:
    async with bench(reuse="user") as at:
        client = await at.client(ALICE)
        text = b'{"jsonrpc":"2.0","id":7,"method":"x","%b":1}' % name.encode()
        exchange = client.send(parse(text, limit=MAX_BODY_BYTES))
        answer = await client.answer(exchange)
        assert (answer["id"], answer["error"]["code"]) == (7, -32600)
        assert not at.server.of("x")


@pytest.mark.parametrize("name", ["ID", "METHOD", "Params"])
async def test_e26_nor_by_a_notification(name: str) -> None:
    async with bench(reuse="user") as at:
        client = await at.client(ALICE)
        text = b'{"jsonrpc":"2.0","method":"notifications/x","%b":"notifications/cancelled"}' % name.encode()
        with pytest.raises(InvalidRequest):
            client.workflow.notify(parse(text, limit=MAX_BODY_BYTES), {})
        client.workflow.notify(notification("notifications/last"), {})
        await at.server.got("notifications/last")
        assert not at.server.of("notifications/x")


async def test_g10_a_uri_to_watch_is_bounded() -> None:
    async with bench(reuse="user") as at:
        client = await at.client(ALICE)
        refused = await client.answer(client.call({"uri": "file:///" + "x" * 8192}, method=SUBSCRIBE))
        assert refused["error"]["code"] == -32602
        assert "longer than 8192 bytes" in refused["error"]["message"]
        assert not at.server.of(SUBSCRIBE)


async def test_g9_what_is_told_to_all_who_share_a_session_is_written_once() -> None:
    async with bench(reuse="user") as at:
        readers = [(await at.client(ALICE)).workflow.streams.attach_standalone() for _ in range(3)]
        for reader in readers:
            await reader.next(0)
        at.server.session.tell(message("notifications/tools/list_changed", {"of": "all"}))
        [first], *others = [[text for _, text in await some(reader)] for reader in readers]
        assert b'"of"' in first
        assert all(text is first for [text] in others), "each of them costs what a message of 16 MiB takes to write"
        for reader in readers:
            reader.close()


async def test_what_a_session_is_told_first_takes_no_place_of_the_calls_that_wait_for_it() -> None:
    async with bench(reuse="user", max_inflight_per_channel=1) as at:
        client = await at.client(ALICE)
        leveled = client.call({"level": "debug"}, method="logging/setLevel")
        (await at.server.got("logging/setLevel")).answer()
        await client.answer(leveled)
        calls = [client.call(id=b"%d" % n) for n in range(2)]
        beside = await at.server.got("logging/setLevel", 2)
        assert beside.session is at.server.sessions[1]
        for n in range(2):
            (await at.server.got(CALLS, n + 1)).answer()
        for call in calls:
            assert "result" in await client.answer(call)


async def test_a_session_that_opens_has_room_for_as_many_calls_as_one_that_is_open() -> None:
    async with bench(reuse="user", max_inflight_per_channel=2, max_channels_per_user=2) as at:
        client = await at.client(ALICE)
        at.server.pause("initialize")
        calls = [client.call(id=b"%d" % n) for n in range(3)]
        await at.server.got("initialize", 2)
        calls.append(client.call(id=b"3"))
        refused = await client.answer(client.call(id=b"4"))
        assert refused["error"]["data"] == {"limit": "max_channels_per_user"}
        at.server.let("initialize")
        for n in range(4):
            (await at.server.got(CALLS, n + 1)).answer()
        for call in calls:
            assert "result" in await client.answer(call)
        assert [len(session.of(CALLS)) for session in at.server.sessions] == [2, 2]
