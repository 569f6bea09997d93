"""Requests of 2026-07-28 to a scripted server on a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from trunkline.mux.envelope import parse, request
from trunkline.mux.errors import TrunklineError
from trunkline.mux.modern import CAPABILITIES_KEY, VERSION_KEY
from trunkline.mux.routing import MODERN
from trunkline.mux.statistics import Statistics
from trunkline.transports.upstream.modern_http import ModernHTTPServer
from trunkline.transports.upstream.modern_passage import Passage
from trunkline.transports.upstream.streamable_http import StreamableHTTPConnector

from harness.raw_http import PATIENCE, Peer, RawServer, Serve, serving

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
OK = {"jsonrpc": "2.0", "id": 1, "result": {"resultType": "complete", "n": 1}}
NOTE = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"data":1}}'
SPOKEN = {"jsonrpc": "2.0", "id": 1, "result": {"supportedVersions": [MODERN]}}
MANY = {"jsonrpc": "2.0", "id": 1, "result": {f"{n:064}": 1 for n in range(20_000)}}
"""A result of more members at one level than are read."""
LONG = {"jsonrpc": "2.0", "id": 1, "result": {"supportedVersions": [MODERN] * 20_000}}
"""A result that names more revisions than are read."""


def answer(body: object, status: int = 200, kind: str = "application/json") -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        kind.encode(),
        len(text),
        text,
    )


def failure(code: int) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "error": {"code": code, "message": "no"}}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Here:
    """A server, and what asks it."""

    def __init__(self, server: RawServer, upstream: ModernHTTPServer, statistics: Statistics) -> None:
        self.server = server
        self.upstream = upstream
        self.counts = statistics.counts

    def send(self, method: str = "tools/call", id: bytes = b"1", **headers: str) -> Passage:
        body = request(method, {"_meta": {VERSION_KEY: MODERN, CAPABILITIES_KEY: {}}}, id)
        return self.upstream.send(parse(body, limit=10_000), body, {n.replace("_", "-"): v for n, v in headers.items()})


@asynccontextmanager
async def asking(url: str, timeout: float = PATIENCE) -> AsyncIterator[tuple[ModernHTTPServer, Statistics]]:
    statistics = Statistics()
    connector = StreamableHTTPConnector("up", url, statistics, headers={"Authorization": "Bearer ours"})
    upstream = ModernHTTPServer("up", connector.http, connector.headers, statistics, timeout=timeout)
    try:
        yield upstream, statistics
    finally:
        await connector.close()


@asynccontextmanager
async def asked(serve: Serve, timeout: float = PATIENCE) -> AsyncIterator[Here]:
    async with serving(serve) as server, asking(server.url, timeout) as (upstream, statistics):
        yield Here(server, upstream, statistics)


async def soon(awaited: Awaitable[Any]) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await awaited


async def all_of(passage: Passage) -> bytes:
    """What the passage brings, to its end."""
    await soon(passage.form())
    found = b""
    while (piece := await soon(passage.next(PATIENCE))) is not None:
        found += piece
    return found


async def failed(passage: Passage) -> TrunklineError:
    """Why there is no answer."""
    with pytest.raises(TrunklineError) as caught:
        await soon(passage.form())
    assert passage.outcome == caught.value.reason
    passage.close()
    return caught.value


def hanging(*pieces: bytes) -> tuple[Serve, asyncio.Event, asyncio.Event]:
    """A server that says this and no more; set when it has said it, and when its client has closed the connection."""
    said, left = asyncio.Event(), asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(*pieces)
        said.set()
        await peer.closed()
        left.set()

    return serve, said, left
