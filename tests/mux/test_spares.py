"""Sessions that wait for a workflow: who may take one, what it knows, and that it was never used."""

import asyncio
import json
from typing import Any

import pytest
from harness.memory_wire import echo, message
from harness.muxing import ALICE, BOB, Bench, Client, begin, bench, initialize, settle, some
from trunkline.mux import spares
from trunkline.mux.errors import DirectoryUnavailable, SessionLost, TrunklineError, UpstreamUnreachable
from trunkline.mux.listening import REST_SECONDS
from trunkline.mux.principal import ANONYMOUS, Principal

pytestmark = pytest.mark.anyio

CALLS = "tools/call"
GONE = SessionLost("the server is gone", executed="unknown")
DOWN = UpstreamUnreachable("connection refused", executed="no")


async def ready(at: Bench, sessions: int) -> None:
    """Wait until so many sessions are open, spares among them."""
    await at.server.until(lambda: sum(bool(session.initialized) for session in at.server.live) == sessions)
    await settle()


async def first(at: Bench, principal: Principal = ALICE, **options: Any) -> Client:
    """A client whose session is the first of its kind; a spare stands ready behind it."""
    at.server.on_request = echo
    client = await at.client(principal, **options)
    await ready(at, 2)
    return client


async def how(at: Bench, principal: Principal = ALICE, **options: Any) -> str:
    """What the pool did for one more client."""
    return (await begin(at.pool, principal, **options)).pool_result


async def test_the_next_workflow_of_a_kind_begins_without_a_handshake() -> None:
    async with bench(spares=1) as at:
        await first(at)
        begun = await begin(at.pool, ALICE)
        assert begun.pool_result == "spare"
        assert json.loads(begun.result) == at.server.result
        client = Client(begun.workflow)
        assert "result" in await client.answer(client.call())
        assert len(at.server.sessions[1].of(CALLS)) == 1
        await ready(at, 3)
        assert len(at.server.of("initialize")) == 3, "one for each session, and one more was made ready"
        assert at.counts["pool_requests", "x", "spare"] == 1
        assert at.server.sessions[1].of("initialize")[0].text == at.server.sessions[0].of("initialize")[0].text


async def test_e3_no_id_is_minted_twice_on_a_session_or_for_a_workflow() -> None:
    async with bench(spares=1) as at:
        await first(at)
        begun = await begin(at.pool, ALICE)
        client = Client(begun.workflow)
        for _ in range(1100):
            await client.answer(client.call())
        session = at.server.sessions[1]
        ids = [int(exchange.id) for exchange in session.exchanges if exchange.request]
        assert len(ids) == len(set(ids)) > 1100
        assert ids[:2] == [1, 2], "small integers first"
        following = await at.directory.draw_ids(begun.workflow.record.session_id)
        assert following.start > max(ids)


@pytest.mark.parametrize(
    "other",
    [
        {"principal": BOB},
        {"principal": ANONYMOUS},
        {"message": initialize("2025-06-18")},
        {"message": initialize(capabilities={"roots": {}})},
        {"message": initialize(clientInfo={"name": "test", "version": "2"})},
        {"message": initialize(vendor=1)},
        {"session_headers": {"x-tenant": "two"}},
        {"server": "y"},
    ],
    ids=["principal", "anonymous", "revision", "capabilities", "clientInfo", "other params", "headers", "server"],
)
async def test_g4_only_who_would_have_said_the_same_takes_it(other: dict[str, Any]) -> None:
    async with bench(spares=1) as at:
        await first(at)
        assert await how(at, **{"principal": ALICE, **other}) == "miss"
        assert await how(at) == "spare"


async def test_l17_a_used_session_never_becomes_a_spare() -> None:
    async with bench(spares=1) as at:
        client = await first(at)
        await client.answer(client.call())
        await at.pool.end(client.workflow, "deleted")
        await at.closed()
        again = await at.client(ALICE)
        await again.answer(again.call())
        assert len(at.server.sessions[0].of(CALLS)) == 1
        assert len(at.server.sessions[1].of(CALLS)) == 1


async def test_the_last_one_made_ready_is_taken_first_and_they_are_made_one_at_a_time() -> None:
    async with bench(spares=3, on_request=echo) as at:
        await at.client(ALICE)
        at.server.pause("initialize")
        await at.server.reached("initialize", 2)
        await settle()
        assert sum(not session.initialized for session in at.server.sessions) == 1
        at.server.let("initialize")
        await ready(at, 4)
        assert await how(at) == "spare"
        client = Client(at.pool.workflows[-1])
        await client.answer(client.call())
        assert len(at.server.sessions[3].of(CALLS)) == 1


async def test_what_the_server_told_before_somebody_came_is_told_then() -> None:
    async with bench(spares=1) as at:
        await first(at)
        spare = at.server.sessions[1]
        spare.tell(message("notifications/tools/list_changed"))
        client = Client((await begin(at.pool, ALICE)).workflow)
        reader = client.workflow.streams.attach_standalone()
        assert b"list_changed" in (await some(reader))[0][1]
        spare.tell(message("notifications/prompts/list_changed"))
        assert b"prompts" in (await some(reader))[0][1]
        reader.close()


async def test_a_server_that_asks_before_somebody_came_gets_no_spares() -> None:
    async with bench(spares=1) as at:
        asking = initialize(capabilities={"roots": {}})
        at.server.on_request = echo
        await at.client(ALICE, message=asking)
        await ready(at, 2)
        at.server.sessions[1].tell(message("roots/list", id=1))
        assert (await at.server.got("response")).json["error"]["code"] == -31005
        await at.closed()
        await at.later(50)
        assert len(at.server.sessions) == 2
        assert at.counts["channels_closed", "x", "spoilt"] == 1
        assert await how(at, message=asking) == "miss"


@pytest.mark.parametrize(("bound", "most"), [("MAX_HELD", 2), ("MAX_HELD_BYTES", 150)])
async def test_g10_what_is_kept_for_a_client_to_come_is_bounded(
    bound: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spares, bound, most)
    async with bench(spares=1) as at:
        await first(at)
        for _ in range(3):
            at.server.sessions[1].tell(message("notifications/tools/list_changed"))
        await at.closed()
        await at.later(5)
        await ready(at, 2)
        assert await how(at) == "spare"


# What may have become of it.


@pytest.mark.parametrize("how_lost", ["told", "forgotten", "silent"])
async def test_a_spare_that_was_lost_costs_nobody_anything(how_lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(spares=2, on_request=echo) as at:
        await at.client(ALICE)
        await ready(at, 3)
        await at.later(10)
        for spare in at.server.sessions[1:]:
            if how_lost == "told":
                spare.receiver.lost(GONE)
            elif how_lost == "forgotten":
                spare.forget()
        at.server.on_request = None if how_lost == "silent" else echo
        with monkeypatch.context() as hasty:
            if how_lost == "silent":
                hasty.setattr(spares, "PING_SECONDS", 0.05)
            begun = await begin(at.pool, ALICE)
        assert begun.pool_result == "miss"
        at.server.on_request = echo
        client = Client(begun.workflow)
        assert "result" in await client.answer(client.call())
        assert client.workflow.ended is None
        await at.later(10)
        await ready(at, 4)
        assert await how(at) == "spare"


async def test_a_spare_that_waited_is_asked_whether_it_lives() -> None:
    async with bench(spares=1) as at:
        await first(at)
        await at.later(10)
        at.server.on_request = lambda exchange: exchange.refuse(-32601, "what is that?")
        assert await how(at) == "spare", "any answer is one"
        assert len(at.server.sessions[1].of("ping")) == 1


async def test_a_server_that_loses_spares_gets_new_ones_ever_later() -> None:
    async with bench(spares=1) as at:
        await first(at)
        at.clock.advance(10)
        at.server.session.receiver.lost(GONE)
        await at.later(0)
        assert len(at.server.sessions) == 2
        at.server.unreachable = DOWN
        counts = []
        for _ in range(20):
            await at.later(1)
            counts.append(at.server._at["connect"] - 2)
        assert 1 <= counts[1] <= 2
        assert 3 <= counts[-1] <= 6
        assert at.pool.failures["x"].stage == "connect"
        at.server.unreachable = None
        at.clock.advance(60)
        fresh = await at.client(ALICE)
        assert not fresh.workflow.ended
        await ready(at, 3)


async def test_spares_are_not_opened_while_the_server_is_held_back() -> None:
    async with bench(spares=1) as at:
        await first(at)
        at.clock.advance(10)
        at.server.unreachable = DOWN
        for n in range(3):
            with pytest.raises(UpstreamUnreachable):
                await at.client(ALICE, message=initialize(vendor=n))
        assert at.pool.circuits[0].state == "open"
        at.server.session.receiver.lost(GONE)
        await at.later(60)
        assert at.server._at["connect"] == 5, "a spare is no probe"


async def test_a_directory_that_is_away_costs_no_spare() -> None:
    async with bench(spares=1) as at:
        await first(at)
        at.directory.failing["draw_ids"] = DirectoryUnavailable("away")
        with pytest.raises(DirectoryUnavailable):
            await at.client(ALICE)
        at.directory.failing.clear()
        assert await how(at) == "spare"


@pytest.mark.parametrize("when", ["drawing", "asking"])
async def test_a_workflow_that_ends_while_it_takes_one_leaves_nothing(when: str) -> None:
    async with bench(spares=1) as at:
        await first(at)
        await at.later(10)
        at.server.on_request = None
        if when == "drawing":
            at.directory.pause("draw_ids")
        beginning = asyncio.create_task(begin(at.pool, ALICE, key="k"))
        if when == "drawing":
            await at.directory.reached("draw_ids", 2)
        else:
            await at.server.got("ping")
        [workflow] = [workflow for workflow in at.pool.workflows if workflow.record.key]
        await at.pool.end(workflow, "deleted")
        at.directory.let("draw_ids")
        (await at.server.got("ping")).answer()
        with pytest.raises(TrunklineError):
            await beginning
        await at.closed()
        assert at.server.sessions[1].is_closed


async def test_two_who_come_at_once_do_not_take_the_same() -> None:
    async with bench(spares=1) as at:
        await first(at)
        at.directory.pause("draw_ids")
        both = [asyncio.create_task(begin(at.pool, ALICE)) for _ in range(2)]
        await at.directory.reached("draw_ids", 3)
        at.directory.let("draw_ids")
        assert sorted([(await one).pool_result for one in both]) == ["miss", "spare"]


# For how long it is kept.


async def test_it_ends_when_it_has_waited_long_and_another_takes_its_place() -> None:
    async with bench(spares=1, idle_timeout=1e6, max_channel_age=100) as at:
        await first(at)
        await at.later(101)
        await at.closed()
        await ready(at, 2)
        assert at.counts["channels_closed", "x", "aged"] == 1
        assert not at.server.sessions[0].is_closed, "a session that holds state does not age"


async def test_one_of_a_server_with_nothing_to_tell_is_not_listened_to_for_long() -> None:
    async with bench(spares=1, idle_timeout=10_000) as at:
        at.server.result = {**at.server.result, "capabilities": {"tools": {}}}
        await first(at)
        spare = at.server.sessions[1]
        assert spare.is_listening
        await at.later(REST_SECONDS)
        assert not spare.is_listening
        client = await at.client(ALICE)
        assert "result" in await client.answer(client.call())
        assert spare.of(CALLS)
        assert spare.is_listening


async def test_it_ends_after_idle_timeout() -> None:
    async with bench(spares=1, idle_timeout=100) as at:
        client = await first(at)
        client.workflow.wire_came()
        await at.later(101)
        await at.closed()
        assert at.counts["channels_closed", "x", "idle"] == 1
        client.workflow.wire_left()


async def test_it_ends_when_no_workflow_of_its_kind_has_come_for_a_while() -> None:
    async with bench(spares=1) as at:
        client = await first(at)
        await at.pool.end(client.workflow, "deleted")
        await at.later(30)
        assert await how(at) == "spare", "clients come and go in sequence"
        await at.pool.end(at.pool.workflows[0], "deleted")
        await ready(at, 1)
        await at.later(spares.UNUSED_SECONDS)
        await at.server.until(lambda: not at.server.live)
        assert at.counts["channels_closed", "x", "unused"] == 1


async def test_g10_kinds_that_clients_make_up_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "MAX_UNUSED", 2)
    async with bench(spares=1, on_request=echo) as at:
        used = await at.client(ALICE)
        for n in range(5):
            client = await at.client(ALICE, message=initialize(vendor=n))
            await at.pool.end(client.workflow, "deleted")
        assert len(at.pool._lines._spares._shelves) == 3
        assert await how(at, message=initialize(vendor=0)) == "miss"
        assert not used.workflow.ended


async def test_none_outlives_the_pool() -> None:
    async with bench(spares=2, on_request=echo) as at:
        await at.client(ALICE)
        at.server.pause("initialize")
        await at.server.reached("initialize", 2)
        await at.pool.drain(0)
        at.server.let("initialize")
        await at.server.until(lambda: not at.server.live)


# Caps.


@pytest.mark.parametrize("cap", ["max_workflows", "max_workflows_per_user", "max_workflows_per_tenant"])
async def test_g10_spares_count_and_give_way(cap: str) -> None:
    async with bench(spares=2, **{cap: 3}, on_request=echo) as at:
        await at.client(ALICE)
        await ready(at, 3)
        await at.later(10)
        other = await at.client(ALICE, message=initialize(vendor=1))
        await at.closed()
        assert len(at.server.live) == 3
        assert at.counts["channels_closed", "x", "evicted"] == 1
        assert await how(at) == "spare", "who takes one needs no room"
        assert len(at.pool.workflows) == len(at.server.live) == 3
        await at.pool.end(other.workflow, "deleted")
        await ready(at, 3)


async def test_other_reuse_keeps_none() -> None:
    async with bench(spares=2, reuse="user") as at:
        await at.client(ALICE)
        await at.later(5)
        assert len(at.server.sessions) == 1
