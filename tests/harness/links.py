"""Connections that carry everything, without their bytes: what a client says, and what is due to it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from trunkline.mux.account import Transport
from trunkline.mux.principal import ANONYMOUS, Principal
from trunkline.transports.endpoint import EndpointConfig
from trunkline.transports.guard import Guard
from trunkline.transports.headers import Asked
from trunkline.transports.link import Link
from trunkline.transports.outgoing import Due

from harness.duplex_clients import initialize
from harness.memory_wire import echo
from harness.muxing import PATIENCE, Bench, bench, settle

NOBODY = Asked(None, None, None)


class Line:
    """One connection of a client, without the bytes."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.due: list[Due] = []
        """All that has come."""

    async def say(self, message: dict[str, Any] | bytes, **headers: str) -> None:
        """Send one message."""
        text = message if isinstance(message, bytes) else json.dumps(message).encode()
        with anyio.fail_after(PATIENCE):
            await self.link.take(text, headers)

    async def call(self, id: int | str, tool: str = "t", **arguments: Any) -> None:
        """Call a tool."""
        params = {"name": tool, "arguments": arguments}
        await self.say({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})

    async def hear(self, count: int = 1) -> list[dict[str, Any]]:
        """So many messages."""
        got: list[Due] = []
        with anyio.fail_after(PATIENCE):
            while len(got) < count:
                due = await self.link.next(PATIENCE)
                assert due, (due, got)
                got += [one for one in due if one.message]
        self.due += got
        assert len(got) == count, got
        return [json.loads(one.message) for one in got]

    async def ids(self, count: int = 1) -> list[object]:
        """The ids of so many answers."""
        return [one.get("id") for one in await self.hear(count)]

    async def silent(self) -> bool:
        """True where nothing is due at this moment."""
        await settle()
        return await self.link.next(0) == []

    async def over(self) -> str:
        """Wait for the end of the connection; why."""
        with anyio.fail_after(PATIENCE):
            while await self.link.next(PATIENCE) is not None:
                pass
        return self.link.end_reason

    async def begin(self, **options: Any) -> dict[str, Any]:
        """Do the handshake; the answer to `initialize`."""
        await self.say(initialize(**options))
        [answer] = await self.hear()
        assert "result" in answer, answer
        return answer


class Lines:
    """Connections of clients of the server `x`."""

    def __init__(self, at: Bench) -> None:
        self.at = at
        self._open: list[Link] = []

    async def open(
        self,
        transport: Transport = "websocket",
        asked: Asked = NOBODY,
        principal: Principal = ANONYMOUS,
        *,
        pings: bool = True,
        **options: Any,
    ) -> Line:
        """A connection that asks for a workflow."""
        config = EndpointConfig("x", self.at.pool, Guard(loopback=True), lambda _: principal, **options)
        link = Link(config, principal, transport, pings=pings)
        await link.open(asked)
        self._open.append(link)
        return Line(link)

    async def begun(self, *options: Any, **named: Any) -> Line:
        """The same, with a workflow of its own."""
        line = await self.open(*options, **named)
        await line.begin()
        return line

    async def back(self, line: Line, count: int | None = None, **options: Any) -> Line:
        """Another WebSocket for the workflow of one that was cut."""
        last = None if count is None else str(count)
        return await self.open("websocket", Asked(line.link.session_id, None, last), **options)

    def close(self) -> None:
        """All connections go."""
        for link in self._open:
            link.close()


@asynccontextmanager
async def lines(**options: Any) -> AsyncIterator[Lines]:
    """Connections to a server that answers with the arguments of a call; the options are those of `bench`."""
    async with bench(**options) as at:
        at.server.on_request = echo
        made = Lines(at)
        yield made
        made.close()
