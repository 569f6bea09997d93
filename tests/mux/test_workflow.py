"""A workflow: what its client tells and answers, and what it goes on with that another worker held."""

import pytest
from harness.muxing import bench, notification, response
from trunkline.mux.directory import Entry
from trunkline.mux.event_log import Overflow
from trunkline.mux.limits import EventLogLimits
from trunkline.mux.recovery import recover

pytestmark = pytest.mark.anyio


async def test_notifications_of_the_client_reach_the_server_except_the_handshakes() -> None:
    async with bench() as at:
        client = await at.client()
        workflow = client.workflow
        workflow.notify(notification("notifications/initialized"), {})
        workflow.notify(notification("notifications/progress", {"progressToken": 1, "progress": 1}), {})
        workflow.notify(notification("notifications/roots/list_changed"), {"X-Class": "a"})
        told = await at.server.got("notifications/roots/list_changed")
        assert told.headers["x-class"] == "a"
        assert [e.kind for e in at.server.session.exchanges[1:]] == ["notifications/initialized", told.kind]


async def test_an_answer_that_nobody_asked_for_is_dropped_and_counted() -> None:
    async with bench() as at:
        client = await at.client()
        client.workflow.respond(response(1))
        assert at.counts["unknown_answers", "x"] == 1
        assert at.server.of("response") == []


async def test_what_is_restored_where_no_room_is_left_ends_the_session_with_that_reason() -> None:
    async with bench(event_log=EventLogLimits(events=2)) as at:
        workflow = (await at.client()).workflow
        owed = workflow.streams.open()
        for n in range(2):
            workflow.streams.append(owed, b"%d" % n)
        kept = [Entry("event", stream, n, b"{}") for stream in (9, 10, 11) for n in (1, 2)]
        workflow.restore(recover([*kept, Entry("asked", 0, 77, b"5")]), 1, lambda name: True)
        assert workflow.ended is not None
        assert workflow.ended.cause == Overflow.reason
        assert at.pool._budget.held == 0, "nothing is kept of what ended"
        assert not workflow.knows(77)


async def test_what_is_restored_is_kept_for_as_long_as_its_client_may_come_for_it_and_no_longer() -> None:
    async with bench(idle_timeout=10_000, resume_window=100) as at:
        workflow = (await at.client()).workflow
        at.clock.advance(200)
        for _ in range(3):  # looked after, and put off until it has been idle for long
            await at.clock.read()
        workflow.restore(recover([Entry("asked", 0, 77, b"5"), Entry("opened", 9, 0, b"[]")]), 1, lambda name: True)
        at.clock.advance(50)
        for _ in range(3):
            await at.clock.read()
        assert workflow.knows(77), "its client is about to answer, or it would not have been restored"
        assert workflow.knows(9)
        at.clock.advance(60)
        refused = await at.server.got("response")
        assert refused.json["id"] == 5
        assert not workflow.knows(77)
        assert not workflow.knows(9)
