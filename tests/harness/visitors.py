"""Clients of any transport that take their steps in the order that a test gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import anyio
from websockets.exceptions import InvalidStatus

from harness.duplex_clients import ConnectionCut, SocketClient, SSEClient, initialize
from harness.wire import Wire

Transport = Literal["http", "sse", "websocket"]
TRANSPORTS: tuple[Transport, ...] = ("http", "sse", "websocket")

PATIENCE = 30.0
"""Seconds after which clients that are not through fail the test."""


def duplex(transport: Transport, base: str, headers: Mapping[str, str]) -> SSEClient | SocketClient:
    """A client of a transport that carries everything; `base` is the URL of the server without its last part."""
    return SSEClient(base, headers) if transport == "sse" else SocketClient(base, headers)


class Speaker:
    """A client of any transport that asks one thing after the other."""

    def __init__(self, transport: Transport, base: str, headers: Mapping[str, str]) -> None:
        self._wire = Wire(f"{base}/mcp", headers)
        self._duplex = None if transport == "http" else duplex(transport, base, headers)

    async def __aenter__(self) -> Self:
        await self._wire.__aenter__()
        if self._duplex is not None:
            await self._duplex.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._duplex is not None:
            await self._duplex.__aexit__(kind, error, trace)
        await self._wire.__aexit__(kind, error, trace)

    async def connect(self) -> None:
        """Connect, where the transport has a connection to itself."""
        if self._duplex is not None:
            await self._duplex.connect()
            self._wire.headers["Mcp-Session-Id"] = self._duplex.session_id

    async def ask(self, message: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer to one request; None where the session is gone.

        Raises:
            ConnectionCut: the session is gone, and its connection with it.
        """
        if self._duplex is not None:
            await self._duplex.send(message)
            return await self._duplex.answer(message["id"])
        answer = await self._wire.post(message)
        if answer.status != 200:
            assert answer.status in (400, 404), (answer.status, await answer.body())
            return None
        if "Mcp-Session-Id" in answer.headers:
            self._wire.headers["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
        return await answer.response()

    async def call(self, tool: str, arguments: Mapping[str, Any], id: int) -> dict[str, Any] | None:
        """The same for a tool call."""
        params = {"name": tool, "arguments": dict(arguments)}
        return await self.ask({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})

    async def end(self) -> None:
        """End the session, whatever its key."""
        await (await self._wire.delete({"Trunkline-End": "workflow"})).body()


@dataclass(frozen=True, slots=True)
class Visit:
    """What a client does: a handshake, so many calls that say `whose` they are, and its end."""

    transport: Transport
    base: str
    whose: str
    headers: Mapping[str, str] = field(default_factory=dict)
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 1
    ends: bool = False

    @property
    def steps(self) -> int:
        """How many turns it takes."""
        return self.calls + 2


class Visitor:
    """A client that takes one step of its visit in each turn, until another one has ended what its key names."""

    def __init__(self, visit: Visit) -> None:
        self.answered = 0
        """Calls that were answered, each with its own answer."""
        self._visit = visit
        self._turns = anyio.Semaphore(0)
        self._given = 0
        self._taken = 0
        self._stepped = anyio.Event()

    @property
    def has_turns_left(self) -> bool:
        """True until it was given all of its turns."""
        return self._given < self._visit.steps

    async def turn(self, *, waits: bool) -> None:
        """Let it take its next step; with `waits`, until that is done."""
        if self.has_turns_left:
            self._given += 1
            self._turns.release()
            while waits and self._taken < self._given:
                await self._stepped.wait()

    async def run(self) -> None:
        """Take every step in its turn."""
        try:
            await self._live()
        except (ConnectionCut, InvalidStatus):
            pass
        finally:
            self._took(self._visit.steps)

    async def _live(self) -> None:
        visit = self._visit
        async with Speaker(visit.transport, visit.base, visit.headers) as speaker:
            await self._turns.acquire()
            await speaker.connect()
            opened = await speaker.ask(initialize(0, capabilities=visit.capabilities))
            if opened is None or "error" in opened:
                return
            for n in range(1, visit.calls + 1):
                self._took(n)
                await self._turns.acquire()
                arguments = {"value": {"whose": visit.whose, "n": n}}
                answer = await speaker.call("echo", arguments, n)
                if answer is None or "error" in answer:
                    return
                assert answer["result"]["structuredContent"] == arguments, answer
                self.answered += 1
            self._took(visit.calls + 1)
            await self._turns.acquire()
            if visit.ends:
                await speaker.end()

    def _took(self, steps: int) -> None:
        self._taken = steps
        self._stepped.set()
        self._stepped = anyio.Event()


async def play(visits: Sequence[Visit], order: Sequence[tuple[int, bool]]) -> int:
    """All clients at once, their steps in this order (who is next, and whether the one after waits for it).

    How many calls were answered. What is left of the visits after the order comes last.
    """
    visitors = [Visitor(visit) for visit in visits]
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for visitor in visitors:
                tasks.start_soon(visitor.run)
            for index, waits in order:
                await visitors[index % len(visitors)].turn(waits=waits)
            for visitor in visitors:
                while visitor.has_turns_left:
                    await visitor.turn(waits=False)
    return sum(visitor.answered for visitor in visitors)
