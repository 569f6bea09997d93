"""Clients of a gateway of ContextForge: those of the SDK, and raw ones for what those do not show."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import aiohttp
from websockets.asyncio.client import connect

from harness.clients import play, texts
from harness.contextforge import ADMIN, Forge, token
from harness.sse import Parser
from harness.upstreams import Upstream

Way = Literal["http", "sse", "ws"]
WAYS: tuple[Way, ...] = ("http", "sse", "ws")
PATIENCE = 20.0
INITIALIZE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "raw", "version": "1"},
}


class Place:
    """One gateway before three servers: `plain`, `shared` (by user) and `old` (a session for each call)."""

    def __init__(self, forge: Forge, servers: dict[str, Upstream]) -> None:
        self.forge = forge
        self.servers = servers

    def reset(self) -> None:
        for server in self.servers.values():
            server.reset()

    async def calls(
        self, way: Way, server: str, tool: str, *, times: int = 1, user: str = ADMIN, **more: Any
    ) -> list[str]:
        """The texts that a client of the SDK gets, in one session of its own."""
        bearer = token(self.forge.version, user)
        url = self.forge.url(server, way)
        call = {"tool": f"{server}-{tool}", "times": times, "arguments": more.pop("arguments", {})}
        scenario: Any = {"url": url, "transport": {"ws": "websocket"}.get(way, way), "calls": [call], **more}
        scenario["headers"] = {"Authorization": f"Bearer {bearer}"}
        return texts(await play("sdk1", scenario))


class Refused(Exception):
    """A message was not taken."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class Raw:
    """A client that speaks for itself."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.session = ""
        """Over Streamable HTTP, the id of its session."""

    async def send(self, method: str, params: Any = None, *, id: int | None = None) -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        if params is not None:
            message["params"] = params
        if id is not None:
            message["id"] = id
        await self.post(message)

    async def post(self, message: dict[str, Any]) -> None:
        raise NotImplementedError

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.received.get(), PATIENCE)

    async def answer(self, id: int) -> dict[str, Any]:
        while (message := await self.next()).get("id") != id:
            pass
        return message

    async def leave(self) -> int:
        """End its session; the status."""
        raise NotImplementedError

    async def begin(self) -> None:
        await self.send("initialize", INITIALIZE, id=0)
        await self.answer(0)
        await self.send("notifications/initialized")


@asynccontextmanager
async def raw(
    place: Place, way: Way, server: str = "plain", user: str = ADMIN, *, seconds: float = 3600
) -> AsyncIterator[Raw]:
    """A client that has begun, with a token for so long; leaving it cuts its connection without a word."""
    bearer = token(place.forge.version, user, seconds=seconds)
    client = Raw()
    if way == "ws":
        authorization = {"Authorization": f"Bearer {bearer}"}
        async with connect(place.forge.url(server, way), additional_headers=authorization, proxy=None) as socket:

            async def read() -> None:
                async for text in socket:
                    client.received.put_nowait(json.loads(text))

            async def write(message: dict[str, Any]) -> None:
                await socket.send(json.dumps(message))

            client.post = write  # type: ignore[method-assign]
            reading = asyncio.create_task(read())
            await client.begin()
            try:
                yield client
            finally:
                reading.cancel()
                socket.transport.abort()
        return
    headers = {"Authorization": f"Bearer {bearer}", "Accept": "application/json, text/event-stream"}
    async with aiohttp.ClientSession(headers=headers) as http:
        await (_over_sse if way == "sse" else _over_http)(client, http, place.forge.url(server, way))
        try:
            yield client
        finally:
            for task in client.tasks:  # type: ignore[attr-defined]
                task.cancel()


async def _over_sse(client: Raw, http: aiohttp.ClientSession, url: str) -> None:
    endpoint: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read() -> None:
        parser = Parser()
        async with http.get(url) as stream:
            async for chunk in stream.content.iter_any():
                for event in parser.feed(chunk):
                    if event.event == "endpoint":
                        endpoint.set_result(event.data)
                    elif event.event == "message":
                        client.received.put_nowait(json.loads(event.data))

    client.tasks = [asyncio.create_task(read())]  # type: ignore[attr-defined]
    client.endpoint = await asyncio.wait_for(endpoint, PATIENCE)  # type: ignore[attr-defined]

    async def write(message: dict[str, Any]) -> None:
        async with http.post(client.endpoint, json=message) as taken:  # type: ignore[attr-defined]
            if taken.status != 202:
                raise Refused(taken.status)

    client.post = write  # type: ignore[method-assign]
    await client.begin()


async def _over_http(client: Raw, http: aiohttp.ClientSession, url: str) -> None:
    client.tasks = []  # type: ignore[attr-defined]

    async def exchange(message: dict[str, Any]) -> None:
        async with http.post(url, json=message) as answer:
            if answer.status >= 400:
                client.received.put_nowait({"id": message.get("id"), "error": {"code": answer.status}})
                return
            if "Mcp-Session-Id" in answer.headers:
                client.session = http.headers["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
            if answer.content_type == "application/json":
                if (found := await answer.json()) is not None:
                    client.received.put_nowait(found)
                return
            parser = Parser()
            async for chunk in answer.content.iter_any():
                for event in parser.feed(chunk):
                    if event.data:
                        client.received.put_nowait(json.loads(event.data))

    async def write(message: dict[str, Any]) -> None:
        task = asyncio.create_task(exchange(message))
        client.tasks.append(task)  # type: ignore[attr-defined]
        if "id" not in message:
            await task

    async def leave() -> int:
        async with http.delete(url) as answer:
            return answer.status

    client.post, client.leave = write, leave  # type: ignore[method-assign]
    await client.begin()


@asynccontextmanager
async def listening(place: Place, session: str) -> AsyncIterator[asyncio.Queue[dict[str, Any]]]:
    """What comes on the GET stream of a session over Streamable HTTP."""
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    headers = {
        "Authorization": f"Bearer {token(place.forge.version)}",
        "Accept": "text/event-stream",
        "Mcp-Session-Id": session,
    }

    async def read(stream: aiohttp.ClientResponse) -> None:
        parser = Parser()
        async for chunk in stream.content.iter_any():
            for event in parser.feed(chunk):
                if event.data:
                    heard.put_nowait(json.loads(event.data))

    async with aiohttp.ClientSession() as http, http.get(place.forge.url("plain", "http"), headers=headers) as stream:
        assert stream.status == 200
        reading = asyncio.create_task(read(stream))
        try:
            yield heard
        finally:
            reading.cancel()
