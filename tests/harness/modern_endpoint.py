"""An endpoint of 2026-07-28, before a server that plays a script."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from trunkline.mux.modern import CAPABILITIES_KEY, REVISIONS, VERSION_KEY
from trunkline.mux.routing import LEGACY, MODERN
from trunkline.mux.statistics import Statistics
from trunkline.transports.modern import ModernRequests
from trunkline.transports.tracing import Tracer
from trunkline.transports.upstream.modern_http import ModernHTTPServer
from trunkline.transports.upstream.streamable_http import StreamableHTTPConnector

from harness.asgi_client import Answer, ASGIClient
from harness.endpoint_bench import front
from harness.upstream_scripted import (
    OpenStream,
    Play,
    Reply,
    ScriptedUpstream,
)

META = {VERSION_KEY: MODERN, CAPABILITIES_KEY: {}}
SPOKEN: Play = [Reply({"resultType": "complete", "supportedVersions": [MODERN], "capabilities": {}})]
NOTE = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": 1}}
DONE = {"resultType": "complete", "content": []}
ANSWERED: Play = [Reply(DONE)]

offers_whole = False
"""Whether whole requests may be taken without a task, as a listener of the gateway has it."""


def body_of(method: str = "tools/call", id: Any = 1, meta: Any = META, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": {"_meta": meta, **params}}


def headers_of(method: str = "tools/call", **more: str) -> dict[str, str]:
    return {"mcp-protocol-version": MODERN, "mcp-method": method, **{n.replace("_", "-"): v for n, v in more.items()}}


class JSONHead(OpenStream):
    """The head of a body of JSON, whose bytes follow."""

    def __init__(self, size: int) -> None:
        super().__init__({"content-type": "application/json", "content-length": str(size)})


class Here:
    """A server, and clients of what stands before it."""

    def __init__(self, upstream: ScriptedUpstream, client: ASGIClient, requests: ModernRequests, counts: Any) -> None:
        self.upstream = upstream
        self.client = client
        self.requests = requests
        self.counts = counts

    async def call(self, method: str = "tools/call", id: Any = 1, **headers: str) -> Answer:
        return await self.client.post(body_of(method, id), headers_of(method, **headers))

    def start(self, method: str = "tools/call", **headers: str) -> Answer:
        return self.client.start("POST", body_of(method), headers_of(method, **headers))

    async def outcome(self, answer: Answer, method: str = "tools/call") -> str:
        """How the one request of this method ended, as it was counted."""
        await answer.over()
        (found,) = [key[3] for key in self.counts if key[:3] == ("calls", "x", method)]
        return str(found)


@asynccontextmanager
async def requests_to(
    url: str,
    *,
    max_inflight: int = 64,
    headers: Sequence[str] = (),
    offers: Sequence[str] = (*LEGACY, *REVISIONS),
    tracer: Tracer | None = None,
) -> AsyncIterator[tuple[ModernHTTPServer, ModernRequests, Any]]:
    statistics = Statistics()
    connector = StreamableHTTPConnector("x", url, statistics, headers={"Authorization": "Bearer ours"})
    upstream = ModernHTTPServer("x", connector.http, connector.headers, statistics, timeout=10, offers=offers)
    requests = ModernRequests("x", upstream, statistics, max_inflight=max_inflight, headers=headers, tracer=tracer)
    try:
        yield upstream, requests, statistics.counts
    finally:
        await connector.close()


@asynccontextmanager
async def both_eras(
    play: Play = ANSWERED,
    *,
    discover: Play = SPOKEN,
    script: Mapping[str, Sequence[Play]] | None = None,
    **options: Any,
) -> AsyncIterator[Here]:
    """An endpoint of both eras before a server that plays this for every call."""
    plays = {"server/discover": [discover], "tools/call": [play], **(script or {})}
    async with (
        ScriptedUpstream(plays) as upstream,
        requests_to(upstream.url, **options) as (server, requests, counts),
        front(options={"modern": requests}, offers_whole=offers_whole) as ahead,
    ):
        await server.revisions()
        yield Here(upstream, ahead.client, requests, counts)
