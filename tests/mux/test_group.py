"""The sessions of a group: which of them is taken, when one ends, is replaced or opened anew, and never two at once."""

import pytest
from harness.memory_wire import Session, echo, message
from harness.muxing import ALICE, Bench, Client, bench, idle, settle, some
from trunkline.mux.errors import SessionLost, TrunklineError, UpstreamUnreachable

pytestmark = pytest.mark.anyio

CALLS = "tools/call"
SUBSCRIBE = "resources/subscribe"
LEVEL = "logging/setLevel"
GONE = SessionLost("the server is gone", executed="unknown")
DOWN = UpstreamUnreachable("connection refused", executed="no")


async def ask(client: Client, method: str, **params: str) -> None:
    assert "result" in await client.answer(client.call(params, method=method))


def lose(session: Session, cause: TrunklineError = GONE) -> None:
    session.receiver.lost(cause)


def used(at: Bench) -> list[int]:
    """Calls by session, in the order in which the sessions were opened."""
    return [len(session.of(CALLS)) for session in at.server.sessions]


async def three_sessions(at: Bench) -> Client:
    """A client whose calls have taken three sessions, all of them free again."""
    client = await at.client(ALICE)
    calls = [client.call(id=b"%d" % n) for n in range(3)]
    for n in range(3):
        (await at.server.got(CALLS, n + 1)).answer()
    for call in calls:
        await client.answer(call)
    assert used(at) == [1, 1, 1]
    return client


# Which one is taken, and when those that are not needed end.


async def test_g10_what_no_workflow_has_come_back_to_for_long_enough_ends() -> None:
    async with bench(reuse="user", idle_timeout=100) as at:
        client = await at.client(ALICE)
        await at.pool.end(client.workflow, "deleted")
        await at.later(99)
        assert len(at.server.live) == 1
        await at.later(2)
        await at.closed()
        assert at.counts["channels_closed", "x", "idle"] == 1


async def test_the_most_recently_used_is_taken_first_and_what_is_not_needed_ends() -> None:
    async with bench(reuse="user", max_inflight_per_channel=1, idle_timeout=100) as at:
        client = await three_sessions(at)
        await at.later(0)
        for _ in range(3):
            await at.later(40)
            calls = [client.call(id=b"%d" % n) for n in range(2)]
            await at.server.until(lambda: sum(not upstream.is_over for upstream in at.server.of(CALLS)) == 2)
            for upstream in at.server.of(CALLS):
                if not upstream.is_over:
                    upstream.answer()
            for call in calls:
                await client.answer(call)
        await at.closed()
        assert used(at) == [4, 1, 4]
        assert [session.is_closed for session in at.server.sessions] == [False, True, False]
        await at.later(0)
        await at.later(200)
        await at.closed(2)
        assert not at.server.sessions[0].is_closed, "the primary one stays"
        assert at.counts["channels_closed", "x", "idle"] == 2


async def test_a_session_beside_the_first_that_is_lost_takes_no_place() -> None:
    async with bench(reuse="user", max_inflight_per_channel=1, max_channels_per_user=3) as at:
        client = await three_sessions(at)
        lose(at.server.sessions[2])
        await at.later(1)
        assert len(client.workflow.line.channels) == 2


# One handshake at a time.


async def test_one_session_of_a_key_is_opened_after_the_other() -> None:
    async with bench(reuse="user", max_inflight_per_channel=2) as at:
        client = await at.client(ALICE)
        lose(at.server.session)
        at.server.pause("initialize")
        calls = [client.call(id=b"%d" % n) for n in range(6)]
        await at.server.reached("initialize", 2)
        await settle()
        assert len(at.server.of("initialize")) == 2, "the first session, and one of the three that are due"
        at.server.on_request = echo
        at.server.let("initialize")
        for call in calls:
            assert "result" in await client.answer(call)
        assert used(at) == [0, 2, 2, 2]


async def test_what_cannot_be_opened_for_one_cannot_for_those_who_wait_behind_it() -> None:
    async with bench(reuse="user", max_inflight_per_channel=1) as at:
        client = await at.client(ALICE)
        at.clock.advance(10)
        lose(at.server.session)
        at.server.pause("connect")
        calls = [client.call(id=b"%d" % n) for n in range(3)]
        await at.server.reached("connect", 2)
        at.server.unreachable = DOWN
        at.server.let("connect")
        for call in calls:
            assert (await client.answer(call))["error"]["code"] == -31001
        assert at.server._at["connect"] == 2
        [circuit] = at.pool.circuits
        assert circuit.failures == 1, "one failure was seen"


async def test_a_session_that_waits_for_its_turn_can_be_closed() -> None:
    async with bench(reuse="user", max_inflight_per_channel=1) as at:
        client = await at.client(ALICE)
        lose(at.server.session)
        at.server.pause("connect")
        calls = [client.call(id=b"%d" % n) for n in range(3)]
        await at.server.reached("connect", 2)
        await at.pool.drain(0)
        for call in calls:
            assert (await client.answer(call))["error"]["code"] == -31002
        at.server.let("connect")
        await at.closed(1)


# A session that was lost.


async def test_a_lost_session_is_opened_anew_at_once_where_subscriptions_wait_for_it() -> None:
    async with bench(reuse="user", on_request=lambda exchange: exchange.answer()) as at:
        client = await at.client(ALICE)
        await ask(client, SUBSCRIBE, uri="file:///a")
        lose(at.server.session)
        again = await at.server.got(SUBSCRIBE, 2)
        assert again.session is at.server.sessions[1]
        await ask(client, "tools/list")
        assert len(at.server.sessions) == 2


async def test_a_lost_session_is_opened_anew_at_once_where_a_client_listens() -> None:
    async with bench(reuse="user") as at:
        client = await at.client(ALICE)
        reader = client.workflow.streams.attach_standalone()
        await reader.next(0)
        lose(at.server.session)
        await at.server.until(lambda: len(at.server.sessions) == 2 and at.server.session.revision)
        await settle()
        at.server.session.tell(message("notifications/tools/list_changed"))
        assert len(await some(reader)) == 1
        reader.close()


async def test_where_nobody_waits_only_the_next_call_opens_it_anew() -> None:
    async with bench(reuse="user", on_request=echo) as at:
        client = await at.client(ALICE)
        lose(at.server.session)
        await at.later(10)
        assert len(at.server.sessions) == 1
        assert "result" in await client.answer(client.call())


async def test_a_server_that_stays_away_is_tried_ever_later_and_by_one_at_a_time() -> None:
    async with bench(reuse="user", on_request=lambda exchange: exchange.answer()) as at:
        client = await at.client(ALICE)
        await ask(client, SUBSCRIBE, uri="file:///a")
        at.clock.advance(10)
        at.server.unreachable = DOWN
        lose(at.server.session)
        await at.server.reached("connect", 2)
        for _ in range(5):
            await at.later(0)
        assert at.server._at["connect"] == 2, "not before its time"
        tries = []
        for _ in range(20):
            await at.later(1.0)
            tries.append(at.server._at["connect"])
        assert tries[0] == 3
        assert 4 <= tries[-1] <= 8
        at.server.unreachable = None
        await at.later(60)
        await at.server.got(SUBSCRIBE, 2)
        assert at.pool.circuits == [] or at.pool.circuits[0].state == "closed"


# A session that has aged.


async def test_a_session_that_has_aged_is_replaced_make_before_break() -> None:
    async with bench(reuse="user", max_channel_age=100, idle_timeout=1e6) as at:
        at.server.on_request = lambda exchange: exchange.answer()
        client = await at.client(ALICE)
        await ask(client, SUBSCRIBE, uri="file:///a")
        await ask(client, LEVEL, level="debug")
        reader = client.workflow.streams.attach_standalone()
        await reader.next(0)
        at.server.on_request = None
        running = client.call(id=b"1")
        await at.server.got(CALLS)
        old = at.server.session
        at.clock.advance(101)
        told = await at.server.got(SUBSCRIBE, 2)
        new = told.session
        assert new is not old
        for session in (old, new):
            session.tell(message("notifications/resources/updated", {"uri": "file:///a"}))
        assert len(await some(reader)) == 1, "one of the two speaks for both"
        before = client.call(id=b"2")
        assert (await at.server.got(CALLS, 2)).session is old, "the new one does not know everything yet"
        (await at.server.got(LEVEL, 2)).answer()
        told.answer()
        await settle()
        after = client.call(id=b"3")
        assert (await at.server.got(CALLS, 3)).session is new
        for session in (old, new):
            session.tell(message("notifications/resources/updated", {"uri": "file:///a"}))
        assert len(await some(reader)) == 1
        assert not old.is_closed, "its calls in flight end"
        for upstream in at.server.of(CALLS):
            upstream.answer()
        for call in (running, before, after):
            assert "result" in await client.answer(call)
        await at.closed()
        assert old.is_closed
        assert at.counts["channels_closed", "x", "aged"] == 1
        assert client.workflow.ended is None
        reader.close()


async def test_what_is_asked_of_the_old_session_meanwhile_the_new_one_is_told_too() -> None:
    async with bench(reuse="user", max_channel_age=100, idle_timeout=1e6) as at:
        at.server.on_request = lambda exchange: exchange.answer()
        client = await at.client(ALICE)
        await ask(client, SUBSCRIBE, uri="file:///gone")
        at.server.on_request = None
        at.clock.advance(101)
        first = await at.server.got(SUBSCRIBE, 2)
        asked = client.call({"uri": "file:///late"}, method=SUBSCRIBE)
        await at.server.got(SUBSCRIBE, 3)
        old, new = at.server.sessions
        late = old.of(SUBSCRIBE)[1]
        assert first.session is new
        first.answer()
        await settle()
        assert len(client.workflow.line.channels) == 2, "the old one has not answered"
        dropped = client.call({"uri": "file:///gone"}, method="resources/unsubscribe")
        (await at.server.got("resources/unsubscribe")).answer()
        await client.answer(dropped)
        late.answer()
        await client.answer(asked)
        await at.server.until(lambda: len(new.of(SUBSCRIBE)) == 2 and new.of("resources/unsubscribe"))
        [undone], again = new.of("resources/unsubscribe"), new.of(SUBSCRIBE)[1]
        assert again.json["params"] == {"uri": "file:///late"}
        assert undone.json["params"] == {"uri": "file:///gone"}
        again.answer()
        undone.answer()
        await at.closed()
        assert [session.is_closed for session in at.server.sessions] == [True, False]


async def test_a_session_that_cannot_be_replaced_goes_on_and_it_is_tried_again() -> None:
    async with bench(reuse="user", max_channel_age=100, idle_timeout=1e6, on_request=echo) as at:
        client = await at.client(ALICE)
        at.server.unreachable = DOWN
        at.clock.advance(101)
        await at.server.reached("connect", 2)
        await settle()
        assert "result" in await client.answer(client.call())
        at.server.unreachable = None
        await at.later(5)
        await at.closed()
        assert "result" in await client.answer(client.call())
        assert used(at) == [1, 1]


async def test_a_session_is_not_replaced_where_its_user_may_have_no_more() -> None:
    async with bench(reuse="user", max_channel_age=100, idle_timeout=1e6, max_channels_per_user=1) as at:
        at.server.on_request = echo
        client = await at.client(ALICE)
        await at.later(200)
        assert "result" in await client.answer(client.call())
        assert len(at.server.sessions) == 1


@pytest.mark.parametrize("when", ["opening", "told"])
async def test_the_new_session_takes_over_where_the_old_one_is_lost_meanwhile(when: str) -> None:
    async with bench(reuse="user", max_channel_age=100, idle_timeout=1e6) as at:
        at.server.on_request = lambda exchange: exchange.answer()
        client = await at.client(ALICE)
        await ask(client, SUBSCRIBE, uri="file:///a")
        at.server.on_request = None
        at.server.pause("initialize") if when == "opening" else None
        at.clock.advance(101)
        await at.server.reached("initialize", 2)
        if when == "told":
            await at.server.got(SUBSCRIBE, 2)
        lose(at.server.sessions[0])
        at.server.on_request = lambda exchange: exchange.answer()
        for upstream in at.server.of(SUBSCRIBE)[1:]:
            upstream.answer()
        at.server.let("initialize")
        await ask(client, CALLS)
        assert used(at) == [0, 1]
        assert len(client.workflow.line.channels) == 1
        assert at.server.sessions[1].of(SUBSCRIBE)


async def test_the_old_session_goes_on_where_the_new_one_is_lost_meanwhile() -> None:
    async with bench(reuse="user", max_channel_age=100, idle_timeout=1e6) as at:
        at.server.on_request = lambda exchange: exchange.answer()
        client = await at.client(ALICE)
        await ask(client, SUBSCRIBE, uri="file:///a")
        at.server.on_request = None
        at.clock.advance(101)
        await at.server.got(SUBSCRIBE, 2)
        at.clock.advance(2)
        lose(at.server.sessions[1])
        at.server.on_request = lambda exchange: exchange.answer()
        await ask(client, CALLS)
        assert used(at)[0] == 1
        await at.later(5)
        await at.closed(2)
        assert [session.is_closed for session in at.server.sessions] == [True, True, False]


async def test_a_session_beside_the_first_is_replaced_while_it_is_used_and_ends_where_it_is_not() -> None:
    async with bench(reuse="user", max_channel_age=100, idle_timeout=1e6, max_inflight_per_channel=1) as at:
        client = await at.client(ALICE)
        at.clock.advance(50)
        calls = [client.call(id=b"%d" % n) for n in range(2)]
        await at.server.got(CALLS, 2)
        at.clock.advance(60)
        await at.server.until(lambda: len(at.server.sessions) == 3)
        for upstream in at.server.of(CALLS):
            upstream.answer()
        for call in calls:
            await client.answer(call)
        await at.closed()
        assert at.server.sessions[0].is_closed, "the primary one was the oldest"
        await at.later(200)
        await at.server.until(lambda: len(at.server.live) == 1)
        assert at.counts["channels_closed", "x", "aged"] >= 2


async def test_the_group_ends_with_all_its_sessions() -> None:
    async with bench(reuse="user", max_channel_age=100, idle_timeout=1e6) as at:
        client = await at.client(ALICE)
        running = client.call()
        await at.server.got(CALLS)
        at.clock.advance(101)
        await at.server.until(lambda: len(at.server.sessions) == 2)
        await settle()
        at.server.pause("connect")
        at.clock.advance(101)
        await at.server.reached("connect", 3)
        await at.pool.drain(0)
        assert (await client.answer(running))["error"]["code"] == -31002
        at.server.let("connect")
        await at.closed(2)


async def test_a_client_that_does_not_listen_hears_nothing_of_it() -> None:
    async with bench(reuse="user", max_channel_age=100, idle_timeout=1e6) as at:
        client = await at.client(ALICE)
        reader = client.workflow.streams.attach_standalone()
        await reader.next(0)
        at.clock.advance(101)
        await at.closed()
        assert await idle(reader)
        reader.close()
