"""`/api/events`: what is told at first and then, to how many, and when a stream ends."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from harness.asgi_client import Answer, asgi_client
from harness.memory_wire import MemoryServer
from harness.muxing import ALICE, begin
from trunkline.gateway import events as module
from trunkline.gateway.differences import difference
from trunkline.gateway.events import MAX_LISTENERS, Events, EventsResponse
from trunkline.gateway.trends import Trends
from trunkline.gateway.workers.overview import Overview
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.limits import Pooling
from trunkline.mux.pool import Pool
from trunkline.mux.upstream import Upstream
from trunkline.transports.asgi import Grant, Receive, Scope, Send

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events as often as they may be had."""
    monkeypatch.setattr(module, "PERIOD_SECONDS", 0.01)


class House:
    """The streams of a gateway in front of a server in memory."""

    def __init__(self) -> None:
        self.server = MemoryServer()
        self.grant = Grant()
        self.pool = Pool({"x": Upstream("x", self.server, Pooling())}, MemoryDirectory(), pooling=Pooling())
        self.events = Events(self.pool, Overview(self.pool, Trends(self.pool.statistics)))

    @asynccontextmanager
    async def listening(self, query: str = "", **headers: str) -> AsyncIterator[Answer]:
        """One listener."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope |= {"query_string": query.encode(), "path": "/api/events"}
            await EventsResponse(self.events, self.grant)(scope, receive, send)

        async with asgi_client(app, **headers) as client:
            yield await client.ask("GET")


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    async with made.server.running(), made.pool.running():
        yield made


async def told(answer: Answer) -> tuple[str, Any]:
    """The next event."""
    event = await answer.event()
    assert event is not None
    return event.event, json.loads(event.data)


async def changed(answer: Answer, *path: str) -> Any:
    """What the next change of this member is."""
    with anyio.fail_after(10):
        while True:
            name, patch = await told(answer)
            assert name == "change"
            for member in path:
                patch = patch.get(member) if isinstance(patch, dict) else None
            if patch is not None:
                return patch


async def test_at_first_everything_is_told_and_then_what_has_changed(house: House) -> None:
    async with house.listening() as answer:
        assert (answer.status, answer.is_stream) == (200, True)
        name, seen = await told(answer)
        assert name == "snapshot"
        assert set(seen) == {"gateway", "servers"}
        assert (seen["servers"]["x"]["workflows"], seen["gateway"]["state"]) == (0, "ready")
        await begin(house.pool, ALICE)
        assert await changed(answer, "servers", "x", "workflows") == 1


async def test_nothing_is_told_while_nothing_changes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_ALIVE_SECONDS", 0.05)
    async with house.listening() as answer:
        await told(answer)
        await answer.came(b": keep-alive\n\n: keep-alive\n\n")


async def test_a_page_of_workflows_is_told_as_it_changes(house: House) -> None:
    first = (await begin(house.pool, ALICE)).workflow
    async with house.listening("limit=1&state=detached") as answer:
        _, seen = await told(answer)
        page = seen["page"]
        assert (page["total"], page["order"], page["rows"][first.handle]["server"]) == (1, [first.handle], "x")
        await begin(house.pool, ALICE)
        assert await changed(answer, "page", "total") == 2
        await house.pool.end(first, "deleted")
        assert await changed(answer, "page", "order") == [house.pool.workflows[0].handle]


async def test_a_workflow_is_told_until_after_its_end(house: House) -> None:
    workflow = (await begin(house.pool, ALICE)).workflow
    async with house.listening(f"workflow={workflow.handle}") as answer:
        _, seen = await told(answer)
        assert seen["workflow"]["workflow"]["workflow"] == workflow.handle
        await house.pool.end(workflow, "deleted")
        assert (await changed(answer, "workflow", "ended"))["cause"] == "deleted"
    async with house.listening("workflow=zzzz") as answer:
        assert "no workflow" in (await told(answer))[1]["workflow"]["error"]


@pytest.mark.parametrize("query", ["limit=0", "limit=5000", "state=asleep", "after=x"])
async def test_what_is_asked_wrongly_is_refused_before_anything_is_sent(house: House, query: str) -> None:
    async with house.listening(query) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]
    assert house.events.listeners == 0


async def test_g10_listeners_are_bounded_and_give_their_place_back(house: House) -> None:
    async with anyio.create_task_group() as tasks:
        listening = anyio.Semaphore(0)

        async def listen() -> None:
            async with house.listening() as answer:
                assert answer.status == 200
                listening.release()
                await anyio.sleep_forever()

        for _ in range(MAX_LISTENERS):
            tasks.start_soon(listen)
        for _ in range(MAX_LISTENERS):
            await listening.acquire()
        async with house.listening() as answer:
            assert answer.status == 503
            assert str(MAX_LISTENERS) in (await answer.json())["error"]
        assert house.pool.statistics.counts["refused", "listeners"] == 1
        tasks.cancel_scope.cancel()
    assert house.events.listeners == 0
    async with house.listening() as answer:
        assert answer.status == 200


async def test_g10_who_takes_nothing_gets_no_more_than_one_event_at_a_time(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = anyio.Event()
    look = house.events.overview.servers

    async def watched(scope: Scope) -> Any:
        rows = await look(scope)
        if rows[0]["workflows"]:
            looked.set()
        return rows

    monkeypatch.setattr(house.events.overview, "servers", watched)
    async with house.listening() as answer:
        await told(answer)
        answer.stalled = True
        await begin(house.pool, ALICE)
        await looked.wait()
        for _ in range(3):
            await begin(house.pool, ALICE)
        answer.take()
        counts = [await changed(answer, "servers", "x", "workflows") for _ in range(2)]
        assert counts == [1, 4], "what was missed is told as a whole"


async def test_a_listener_who_leaves_is_forgotten(house: House) -> None:
    async with house.listening() as answer:
        await told(answer)
        answer.leave()
        await answer.over()
        assert house.events.listeners == 0


async def test_a_stream_ends_when_what_let_it_in_no_longer_counts(house: House) -> None:
    async with house.listening() as answer:
        await told(answer)
        house.grant.withdraw()
        await answer.over()
        assert answer.is_whole


async def test_g8_a_drain_is_told_and_then_the_stream_ends(house: House) -> None:
    async with house.listening() as answer:
        await told(answer)
        await house.pool.drain(1)
        assert await changed(answer, "gateway", "state") == "draining"
        await answer.over()
        assert answer.raw.endswith(b"retry: 1000\n\n")
    async with house.listening() as late:
        assert (await told(late))[1]["gateway"]["state"] == "draining"
        await late.over()


async def test_all_listeners_have_what_was_looked_for_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PERIOD_SECONDS", 60.0)
    looks = 0
    look = house.events.overview.servers

    async def counted(scope: Scope) -> Any:
        nonlocal looks
        looks += 1
        return await look(scope)

    monkeypatch.setattr(house.events.overview, "servers", counted)
    async with house.listening() as one, house.listening() as other:
        assert difference((await told(one))[1], (await told(other))[1]) == {}
    assert looks == 1


async def test_who_comes_while_a_slow_look_is_under_way_waits_for_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PERIOD_SECONDS", 60.0)
    looks = 0
    looking, seen = anyio.Event(), anyio.Event()
    look = house.events.overview.servers

    async def slow(scope: Scope) -> Any:
        nonlocal looks
        looks += 1
        looking.set()
        await seen.wait()
        return await look(scope)

    monkeypatch.setattr(house.events.overview, "servers", slow)
    snapshots: list[Any] = []

    async def listen() -> None:
        async with house.listening() as answer:
            snapshots.append((await told(answer))[1])

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await looking.wait()
            tasks.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            assert (house.events.listeners, snapshots) == (2, [])
            seen.set()
    assert looks == 1
    assert difference(*snapshots) == {}


async def test_a_look_that_fails_is_made_anew_by_who_waited_for_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, seen = anyio.Event(), anyio.Event()
    look = house.events.overview.servers

    async def failing(scope: Scope) -> Any:
        monkeypatch.setattr(house.events.overview, "servers", look)
        looking.set()
        await seen.wait()
        raise RuntimeError("the look failed")

    monkeypatch.setattr(house.events.overview, "servers", failing)

    async def fail() -> None:
        with pytest.raises(RuntimeError, match="the look failed"):
            await house.events.see({}, {})

    async def listen() -> None:
        async with house.listening() as answer:
            assert (await told(answer))[0] == "snapshot"

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            await looking.wait()
            tasks.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            seen.set()
