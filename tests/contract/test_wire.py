"""Every wire there is keeps the contract; and the contract tells a wire that does not."""

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from harness.memory_wire import Exchange, MemoryServer
from harness.one_stream import over_sse, over_stdio, over_websocket
from harness.upstream_scripted import (
    Cut,
    Hang,
    Json,
    OpenStream,
    Pause,
    Received,
    ScriptedUpstream,
    Send,
    Status,
    Step,
)
from trunkline.mux.ports import Connector
from trunkline.mux.statistics import Statistics
from trunkline.transports.upstream import process, streamable_http
from trunkline.transports.upstream import websocket as websocket_module
from trunkline.transports.upstream.auto import AutoConnector, RotatingConnector
from trunkline.transports.upstream.http_proxied import ProxiedClient
from trunkline.transports.upstream.sse import SSEConnector
from trunkline.transports.upstream.stdio import StdioConnector
from trunkline.transports.upstream.streamable_http import StreamableHTTPConnector
from trunkline.transports.upstream.websocket import WebSocketConnector

from contract.session import Server
from contract.wire import CHECKS, Check, Maker, check_wire, leaving_is_bounded

pytestmark = pytest.mark.anyio


class InMemory:
    """`MemoryServer` as the contract sees a server."""

    acknowledges = True

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self.binds = server.binds
        self.until = server.until

    @property
    def listens(self) -> bool:
        return self._server.session.is_listening

    @property
    def ended(self) -> bool:
        return self._server.session.is_closed

    async def got(self, method: str, count: int = 1) -> Exchange:
        return await self._server.got(method, count)

    def came(self, method: str) -> int:
        return len(self._server.of(method))

    def tell(self, text: bytes) -> None:
        self._server.session.tell(text)

    def forget(self) -> None:
        self._server.session.forget()

    def refuse_initialized(self) -> None:
        self._server.refuses_initialized = True

    def stall(self) -> None:
        self._server.pause("close")


class Post:
    """One POST that came in, and the play that answers it: written while it is played."""

    def __init__(self, server: "OverHTTP", came: Received, play: list[Step], gate: str) -> None:
        self._server = server
        self._play = play
        self._gate = gate
        self._steps = 0
        self._streams = False
        self._disconnects = server.upstream.disconnects
        self.text = came.body
        self.headers: Mapping[str, str] = came.headers

    @property
    def is_cut(self) -> bool:
        return self._server.upstream.disconnects > self._disconnects

    def say(self, text: bytes) -> None:
        opening = [] if self._streams else [OpenStream()]
        self._streams = True
        self._go_on(*opening, Send(text), Pause(self._next_gate()))

    def finish(self, text: bytes) -> None:
        self._go_on(Send(text) if self._streams else Json(text))

    def cut(self) -> None:
        self._go_on(*([] if self._streams else [OpenStream()]), Cut())

    def _next_gate(self) -> str:
        return f"{self._gate}.{self._steps + 1}"

    def _go_on(self, *steps: Step) -> None:
        self._play.extend(steps)
        self._server.upstream.open(f"{self._gate}.{self._steps}")
        self._steps += 1


class OverHTTP:
    """`ScriptedUpstream` as the contract sees a server."""

    binds = True
    acknowledges = True
    POSTS = 32

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.upstream = upstream
        self.until = upstream.until
        self._plays: list[list[Step]] = [[Pause(f"call{n}.0")] for n in range(self.POSTS)]
        self._posts: dict[int, Post] = {}
        self._told = 0
        self._unasked: list[Step] = [OpenStream(), Pause("get.0")]
        upstream.script = {"tools/call": self._plays, "GET": [self._unasked]}

    @property
    def listens(self) -> bool:
        return bool(self.upstream.of("GET"))

    @property
    def ended(self) -> bool:
        return bool(self.upstream.of("DELETE"))

    async def got(self, method: str, count: int = 1) -> Any:
        came = (await self.upstream.saw(method, count))[count - 1]
        if method != "tools/call":
            return Post(self, came, [], method)
        n = count - 1
        return self._posts.setdefault(n, Post(self, came, self._plays[n], f"call{n}"))

    def came(self, method: str) -> int:
        return len(self.upstream.of(method))

    def tell(self, text: bytes) -> None:
        self._unasked += [Send(text), Pause(f"get.{self._told + 1}")]
        self.upstream.open(f"get.{self._told}")
        self._told += 1

    def forget(self) -> None:
        self.upstream.script["tools/call"] = [[Status(404)]]

    def refuse_initialized(self) -> None:
        self.upstream.script["notifications/initialized"] = [[Status(400)]]

    def stall(self) -> None:
        self.upstream.script["DELETE"] = [[Hang()]]


@asynccontextmanager
async def memory() -> AsyncIterator[tuple[Connector, Server]]:
    async with MemoryServer().running() as server:
        yield server, InMemory(server)


@asynccontextmanager
async def memory_unbound() -> AsyncIterator[tuple[Connector, Server]]:
    """As on a transport where one stream carries all."""
    async with MemoryServer(binds=False).running() as server:
        yield server, InMemory(server)


@asynccontextmanager
async def over_http(connect: Callable[[str], RotatingConnector]) -> AsyncIterator[tuple[Connector, Server]]:
    async with ScriptedUpstream() as upstream:
        connector = connect(upstream.url)
        try:
            yield connector, OverHTTP(upstream)
        finally:
            await connector.close()


@asynccontextmanager
async def over_stream(connect: Callable[[str], RotatingConnector]) -> AsyncIterator[tuple[Connector, Server]]:
    async with over_sse() as server:
        connector = connect(server.address)
        try:
            yield connector, server
        finally:
            await connector.close()


def http(url: str) -> StreamableHTTPConnector:
    return StreamableHTTPConnector("x", url, Statistics())


def http_through_a_proxy(url: str) -> StreamableHTTPConnector:
    """The server stands for the proxy, too: it is asked for the whole URL, and answers."""
    connector = http(url)
    connector.http = proxied(url)
    return connector


def proxied(url: str) -> ProxiedClient:
    return ProxiedClient(url, ssl.create_default_context(), url.rpartition("/")[0])


def found(url: str) -> AutoConnector:
    """Nobody said which transport the server speaks."""
    return AutoConnector("x", url, Statistics())


def remembered(url: str) -> AutoConnector:
    """It is known that the server speaks HTTP+SSE."""
    connector = found(url)
    connector.kind = "sse"
    return connector


@asynccontextmanager
async def websocket() -> AsyncIterator[tuple[Connector, Server]]:
    async with over_websocket() as server:
        yield WebSocketConnector("x", server.address, Statistics()), server


@asynccontextmanager
async def stdio() -> AsyncIterator[tuple[Connector, Server]]:
    async with over_stdio() as server:
        yield StdioConnector("x", server.address, Statistics()), server


MAKERS: dict[str, Maker] = {
    "memory": memory,
    "memory_unbound": memory_unbound,
    "http": partial(over_http, http),
    "http_through_a_proxy": partial(over_http, http_through_a_proxy),
    "http_found": partial(over_http, found),
    "sse": partial(over_stream, lambda url: SSEConnector("x", url, Statistics())),
    "sse_through_a_proxy": partial(over_stream, lambda url: SSEConnector("x", url, Statistics(), http=proxied(url))),
    "sse_found": partial(over_stream, found),
    "sse_remembered": partial(over_stream, remembered),
    "websocket": websocket,
    "stdio": stdio,
}


@pytest.fixture
def short_goodbye(monkeypatch: pytest.MonkeyPatch, check: Check) -> None:
    """The bounds are 2 to 5 s; that they hold is shown as well with less."""
    if check is leaving_is_bounded:
        monkeypatch.setattr(streamable_http, "CLOSE_SECONDS", 0.3)
        monkeypatch.setattr(websocket_module, "CLOSE_SECONDS", 0.3)
        monkeypatch.setattr(process, "END_SECONDS", 0.3)


@pytest.mark.usefixtures("short_goodbye")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
async def test_a_wire_keeps_the_contract(maker: Maker, check: Check) -> None:
    async with maker() as (connector, server):
        with anyio.fail_after(20):
            await check(connector, server)


async def test_the_whole_contract_in_one_call() -> None:
    await check_wire(memory)
