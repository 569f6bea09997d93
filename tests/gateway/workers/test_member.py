"""Workers that know of each other: what one sends on unseen, how it asks the others, by socket and by mailbox."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from harness.muxing import ALICE
from harness.shared_memory import SharedMemoryDirectory
from trunkline.gateway.workers import member as module
from trunkline.gateway.workers.conversation import Unreachable
from trunkline.gateway.workers.member import Answer, Member
from trunkline.mux import membership
from trunkline.mux.directory import Worker
from trunkline.mux.principal import Principal
from trunkline.mux.statistics import Statistics
from trunkline.transports.asgi import HOPS, IDENTITY, MEANT, Receive, Scope, Send, respond

pytestmark = pytest.mark.anyio


class House:
    """Workers in one process, each of which answers its name and where it was asked."""

    def __init__(self, path: Path) -> None:
        self.directory = SharedMemoryDirectory()
        self.path = path
        self.does = "answer"
        """What each does with what another one hands on."""

    async def joins(self, name: str, stack: AsyncExitStack, *, host: str = "") -> "Place":
        """A worker begins; on a host of its own if that is named."""
        runtime = self.path / name
        runtime.mkdir()
        place = Place(name, runtime, self)
        member = place.member
        if host:
            member.membership.worker = msgspec.structs.replace(member.membership.worker, host=host)
        await stack.enter_async_context(member.running())
        if host:  # whence nobody here reaches its socket
            await anyio.Path(member.membership.worker.address).unlink()
        return place


class Place:
    """One of them, with its entrance."""

    def __init__(self, name: str, runtime: Path, house: House) -> None:
        self._name = name
        self._house = house
        self.identity: tuple[Principal, float] | None = ALICE, 12.5
        """Of whoever asks."""
        self.seen: object = None
        """Who asked last, as this worker was told."""
        self.member = Member(
            self._answer,
            house.directory,
            runtime,
            Statistics(),
            identify=lambda scope: self.identity,
            on_lapse=lambda since: None,
        )
        self.app = self.member.forwarder

    async def get(self, path: str, query: str = "", **scope: Any) -> str:
        """Who answers a GET."""
        sent: list[Mapping[str, Any]] = []

        async def receive() -> Mapping[str, Any]:
            if not sent:
                return {"type": "http.request", "body": b"", "more_body": False}
            await anyio.sleep_forever()
            raise AssertionError

        async def send(message: Mapping[str, Any]) -> None:
            sent.append(message)

        whole = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": [], **scope}
        with anyio.fail_after(10):
            await self.app(whole, receive, send)  # type: ignore[arg-type]
        return b"".join(message.get("body", b"") for message in sent).decode()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen = scope.get(IDENTITY)
        if self._house.does == "hang" and scope.get(HOPS):
            await anyio.sleep_forever()
        if self._house.does == "die" and scope.get(HOPS):
            raise ConnectionAbortedError("killed")
        await respond(send, 200, [], f"{self._name}?{scope['query_string'].decode()}".encode())


@pytest.fixture
async def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as made:
        yield made


@pytest.fixture(params=["", "elsewhere"])
def host(request: pytest.FixtureRequest) -> str:
    """Of the second worker: the same as the first one's, or another."""
    found: str = request.param
    return found


async def test_what_is_for_anybody_is_served_here(house: House, stack: AsyncExitStack) -> None:
    a, _ = await house.joins("a", stack), await house.joins("b", stack)
    assert await a.get("/servers/x/mcp") == "a?"


async def test_a_ticket_goes_to_the_worker_that_gave_it(house: House, stack: AsyncExitStack, host: str) -> None:
    a, b = await house.joins("a", stack), await house.joins("b", stack, host=host)
    query = f"x=1&ticket={b.member.number:x}.abc"
    assert await a.get("/servers/x/ws", query) == f"b?{query}"
    assert await b.get("/servers/x/ws", query) == f"b?{query}"
    assert await a.get("/elsewhere", query) == f"a?{query}"


@pytest.mark.parametrize("ticket", ["7f.abc", "abc", "zz.abc", "", "."])
async def test_a_ticket_of_nobody_who_lives_is_judged_here(house: House, stack: AsyncExitStack, ticket: str) -> None:
    a, _ = await house.joins("a", stack), await house.joins("b", stack)
    assert (await a.get("/servers/x/ws", f"ticket={ticket}")).startswith("a?")


async def test_tickets_cost_the_directory_no_reading_each(house: House, stack: AsyncExitStack) -> None:
    a, b = await house.joins("a", stack), await house.joins("b", stack)
    await a.member.membership.numbers()
    workers, reads = house.directory.workers, 0

    async def counted() -> list[Worker]:
        nonlocal reads
        reads += 1
        return await workers()

    house.directory.workers = counted  # type: ignore[method-assign]
    query = f"ticket={b.member.number:x}.abc"
    for _ in range(20):
        assert await a.get("/servers/x/ws", query) == f"b?{query}"
    assert reads < 20


async def test_without_the_directory_a_ticket_is_judged_here_unless_its_giver_is_known(
    house: House, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "BEAT_SECONDS", 3600)
    a, b = await house.joins("a", stack), await house.joins("b", stack)
    query = f"ticket={b.member.number:x}.abc"
    house.directory.is_away = True
    assert await a.get("/servers/x/ws", query) == f"a?{query}"
    house.directory.is_away = False
    await a.member.membership.numbers()
    house.directory.is_away = True
    assert await a.get("/servers/x/ws", query) == f"b?{query}"


async def test_g8_a_worker_that_drains_serves_nobody_who_comes(house: House, stack: AsyncExitStack, host: str) -> None:
    a = await house.joins("a", stack)
    a.member.membership.drain()
    assert await a.get("/servers/x/mcp") == "a?", "nobody else is there"
    b = await house.joins("b", stack, host=host)
    assert await a.get("/servers/x/mcp") == "b?"
    assert b.seen == (ALICE, 12.5), "what proved it stays here"
    assert await a.get("/servers/x/mcp", **{HOPS: 1}) == "a?", "the other one has found that it is held here"
    assert await a.get("/readyz") == "a?"


async def test_g12_a_worker_that_drains_refuses_itself_who_may_not_come(house: House, stack: AsyncExitStack) -> None:
    a, b = await house.joins("a", stack), await house.joins("b", stack, host="elsewhere")
    a.member.membership.drain()
    a.identity = None
    assert await a.get("/servers/x/mcp") == "a?"
    assert b.seen is None


async def test_g8_workers_that_drain_leave_what_comes_to_one_that_goes_on(house: House, stack: AsyncExitStack) -> None:
    draining = [await house.joins(name, stack) for name in "abc"]
    for place in draining:
        place.member.membership.drain()
    await anyio.wait_all_tasks_blocked()
    assert await draining[0].get("/servers/x/mcp") == "a?", "all drain"
    await house.joins("d", stack)
    for place in draining:
        assert [await place.get("/servers/x/mcp") for _ in range(8)] == ["d?"] * 8


async def test_g8_a_cancellation_that_was_found_to_mean_a_call_here_stays_here_although_a_drain_begins(
    house: House, stack: AsyncExitStack
) -> None:
    a, _ = await house.joins("a", stack), await house.joins("b", stack)
    a.member.membership.drain()
    assert await a.get("/servers/x/mcp", **{MEANT: 1}) == "a?"


async def test_g8_a_worker_that_drains_serves_itself_while_nobody_can_tell_who_goes_on(
    house: House, stack: AsyncExitStack
) -> None:
    a, _ = await house.joins("a", stack), await house.joins("b", stack)
    a.member.membership.drain()
    house.directory.is_away = True
    assert await a.get("/servers/x/mcp") == "a?"


async def test_the_others_are_asked_in_the_order_of_their_numbers(house: House, stack: AsyncExitStack) -> None:
    a = await house.joins("a", stack)
    await house.joins("b", stack, host="elsewhere")
    await house.joins("c", stack)
    scope: Scope = {"type": "http", "method": "GET", "path": "/api/sessions", "query_string": b"", "headers": []}
    assert await a.member.ask_others(scope, lambda worker: b"q=%d" % worker) == [
        Answer(2, 200, b"b?q=2"),
        Answer(3, 200, b"c?q=3"),
    ]


@pytest.mark.parametrize("does", ["hang", "die"])
async def test_who_does_not_answer_is_told_apart(
    house: House, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    a = await house.joins("a", stack)
    await house.joins("b", stack)
    gone = await house.directory.enroll(Worker("gone", a.member.membership.worker.host, "/nowhere"))
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)
    house.does = does
    scope: Scope = {"type": "http", "method": "GET", "path": "/api/sessions", "query_string": b"", "headers": []}
    assert await a.member.ask_others(scope, lambda worker: b"") == [Answer(2), Answer(gone.number)]


async def test_g7_one_whose_socket_nobody_listens_on_is_dead_at_once(house: House, stack: AsyncExitStack) -> None:
    """As after a kill -9: it is listed, and its socket is left behind."""
    a = await house.joins("a", stack)
    address = house.path / "killed"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        killed = await house.directory.enroll(Worker("killed", a.member.membership.worker.host, str(address)))
        assert await a.member.membership.find("killed") == killed
        (await a.member.open(killed)).close()
    with pytest.raises(Unreachable):
        await a.member.open(killed)
    assert await a.member.membership.find("killed") is None
    await anyio.wait_all_tasks_blocked()
    assert await house.directory.worker("killed") is None


def as_known(house: House, monkeypatch: pytest.MonkeyPatch, do: Callable[[Worker], Awaitable[None]]) -> None:
    """Do this with each worker as soon as others can know it, and as long as they just still can."""
    enroll, retire = house.directory.enroll, house.directory.retire

    async def enrolled(worker: Worker) -> Worker:
        noted = await enroll(worker)
        await do(noted)
        return noted

    async def retired(worker: Worker) -> None:
        await do(worker)
        await retire(worker)

    monkeypatch.setattr(house.directory, "enroll", enrolled)
    monkeypatch.setattr(house.directory, "retire", retired)


async def test_g7_one_who_begins_or_ends_is_reached_for_as_long_as_others_know_it(
    house: House, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await house.joins("a", stack)

    async def reached(worker: Worker) -> None:
        (await a.member.open(worker)).close()

    as_known(house, monkeypatch, reached)
    async with AsyncExitStack() as short:
        await house.joins("b", short)
    monkeypatch.undo()


async def test_who_is_known_to_others_hears_what_they_send(
    house: House, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []

    async def write(worker: Worker) -> None:
        heard.append(await house.directory.send(worker.id, b""))

    as_known(house, monkeypatch, write)
    async with AsyncExitStack() as life:
        await house.joins("a", life)
    assert heard == [True, True]
