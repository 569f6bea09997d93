"""`/api/events`: what operators look at, once, and then what has changed of it, as server-sent events.

One stream shows the gateway and its servers, and one thing more that its query names: `workflow=HANDLE`, or a page of
workflows by the parameters of `/api/sessions`. Its first event is a `snapshot`, each later one a `change`: a JSON merge
patch (RFC 7396). A listener that is slow gets fewer of them; nothing waits for it.
"""

from collections.abc import Mapping
from typing import Any, Final

import anyio
import msgspec
from anyio.lowlevel import checkpoint
from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse, Response

from ..mux.pool import Pool
from ..transports import event_stream
from ..transports.asgi import EVENT_STREAM, Grant, RawHeaders, Receive, Scope, Send, headers_of
from ..transports.http_endpoint import KEEP_ALIVE_SECONDS, HTTPRequest, send_events
from ..transports.status import HTTPRefusal
from .differences import difference
from .rows import PAGING, NotTold
from .workers.overview import Overview

PERIOD_SECONDS: Final = 1.0
"""From one event of a listener to the next, at least."""

MAX_SHARE: Final = 0.02
"""How much of its time a listener may have the gateway look for it: with very many workflows it gets fewer events."""

MAX_PAUSE_SECONDS: Final = 5.0

MAX_LISTENERS: Final = 32
"""In this process; each costs at most its share."""

Seen = Mapping[str, Any]


class Events:
    """The streams of one process. Each ends when the gateway drains; whoever comes then is told so, and comes again."""

    def __init__(self, pool: Pool, overview: Overview) -> None:
        self.overview = overview
        self._pool = pool
        self.listeners = 0
        """Streams that are open."""
        self._all: Seen = {}
        self._all_until = float("-inf")
        self._looking = anyio.Lock()

    async def serve(self, request: HTTPRequest, query: Mapping[str, str], headers: RawHeaders) -> None:
        """Send what the query asks for until the listener leaves, or what let it in no longer counts.

        Raises:
            HTTPRefusal: 503, too many are listening. Nothing was sent then.
            NotTold: 400, the query asks for what there is not. Nothing was sent then.
        """
        if self.listeners >= MAX_LISTENERS:
            self._pool.statistics.count("refused", "listeners")
            raise HTTPRefusal(503, "listeners", f"{MAX_LISTENERS} listen already: close a page that shows this gateway")
        self.listeners += 1
        try:
            listener = _Listener(self, request.scope, query)
            await listener.look()
            await request.start(200, [*EVENT_STREAM, *headers])
            if await send_events(request, listener.next, self._pool.statistics):
                await request.send_chunk(event_stream.RECONNECT)
                await request.finish()
        finally:
            self.listeners -= 1

    @property
    def is_ending(self) -> bool:
        """True once nobody is to be told more than how things stand."""
        return self._pool.draining

    async def see(self, scope: Scope, query: Mapping[str, str]) -> Seen:
        """How things stand.

        Raises:
            NotTold: 400, the query asks for what there is not.
        """
        seen: dict[str, Any] = {}
        if "workflow" in query:
            seen["workflow"] = await self._workflow(scope, query["workflow"])
        elif any(name in query for name in PAGING):
            page = await self.overview.sessions(scope, query)
            rows = page.pop("sessions")
            order = [row["workflow"] for row in rows]
            seen["page"] = {**page, "order": order, "rows": {row["workflow"]: row for row in rows}}
        await checkpoint()  # with very many workflows each part takes milliseconds: calls go in between
        return {**await self._common(scope), **seen}

    async def _common(self, scope: Scope) -> Seen:
        """What all listeners see: looked for once, whoever is first to need it."""
        async with self._looking:
            if anyio.current_time() >= self._all_until:
                servers = {row["server"]: row for row in await self.overview.servers(scope)}
                await checkpoint()
                self._all = {"gateway": await self.overview.gateway(scope), "servers": servers}
                self._all_until = anyio.current_time() + PERIOD_SECONDS / 2
            return self._all

    async def _workflow(self, scope: Scope, handle: str) -> Seen:
        try:
            return await self.overview.session(scope, handle)
        except NotTold as error:
            return error.body


class EventsResponse(Response):
    """A stream of events as an answer; it ends when `grant`, which let the listener in, is withdrawn."""

    def __init__(self, events: Events, grant: Grant) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._events = events
        self._grant = grant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the base class."""
        headers = headers_of(scope)
        headers.grant = self._grant
        query = QueryParams(scope["query_string"])
        try:
            await self._events.serve(HTTPRequest(headers, receive, send, scope), query, self.raw_headers)
        except NotTold as error:
            await JSONResponse(error.body, error.status, dict(self.headers))(scope, receive, send)
        except HTTPRefusal as refusal:
            body = {"error": refusal.message}
            await JSONResponse(body, refusal.status, dict(self.headers))(scope, receive, send)


class _Listener:
    """One stream: what was told on it last, and when the next event is due."""

    def __init__(self, events: Events, scope: Scope, query: Mapping[str, str]) -> None:
        self._events = events
        self._scope = scope
        self._query = query
        self._told: Seen | None = None
        self._now: Seen = {}
        self._pause = PERIOD_SECONDS

    async def look(self) -> None:
        """See how things stand."""
        self._now = await self._events.see(self._scope, self._query)

    async def next(self) -> bytes | None:
        """The next event; empty where a while has passed without one, None where there will be none any longer."""
        if self._told is None:
            self._told = self._now
            return _event("snapshot", self._now)
        waited = 0.0
        while waited < KEEP_ALIVE_SECONDS:
            if self._events.is_ending and self._told["gateway"]["state"] != "ready":
                return None
            await anyio.sleep(self._pause)
            waited += self._pause
            began = anyio.current_time()
            await self.look()
            patch = difference(self._told, self._now)
            spent = anyio.current_time() - began
            self._pause = min(max(PERIOD_SECONDS, spent / MAX_SHARE), MAX_PAUSE_SECONDS)
            if patch:
                self._told = self._now
                return _event("change", patch)
        return b""


def _event(name: str, what: Seen) -> bytes:
    return event_stream.encode(msgspec.json.encode(what), name=name)
