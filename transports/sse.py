"""HTTP+SSE for clients (2024-11-05): a GET opens the stream, and each message is a POST of its own (rules T1-T5).

Beyond the specification, a stream that breaks can be taken up: by the event id that a plain EventSource sends back, or
by the session id. Its calls go on meanwhile.
"""

import asyncio
from functools import partial
from typing import Final, NamedTuple
from urllib.parse import parse_qs, quote

from ..mux.errors import UnknownSession
from . import event_stream
from .asgi import EVENT_STREAM, RawHeaders, RequestHeaders, Scope
from .endpoint import EndpointConfig
from .headers import Asked, asked, naming
from .http_endpoint import KEEP_ALIVE_SECONDS, HTTPEndpoint, HTTPRequest, check_json, send_events
from .link import Link
from .media import STREAM_TYPE, accepts
from .status import HTTPRefusal

ACCEPTED: Final = b"Accepted"
PLAIN: Final[RawHeaders] = [(b"content-type", b"text/plain; charset=utf-8")]
HEX: Final = frozenset("0123456789abcdef")
MAX_HEX: Final = 8
"""Digits of a worker's number."""


class SSEEndpoint:
    """The two paths of one server: `stream` is the application of its `/sse`, `messages` that of its `/message`.

    `streams` is the configuration of the stream where that differs; its connections are the same.
    """

    def __init__(self, config: EndpointConfig, streams: EndpointConfig | None = None) -> None:
        self.stream = _Stream(streams or config)
        self.messages = _Messages(config)


class _Stream(HTTPEndpoint):
    def __init__(self, config: EndpointConfig) -> None:
        super().__init__(config, {"GET": self._get})
        self._links = config.connections.links

    async def _get(self, request: HTTPRequest) -> None:
        if not accepts(request.headers, STREAM_TYPE):
            raise HTTPRefusal(406, "accept", "Accept must list text/event-stream")
        if self._pool.draining:
            await request.respond(200, EVENT_STREAM, event_stream.RECONNECT)
            return
        async with self.coming_back(request):
            with self._config.admission.place(request.principal, self._config.server, self._pool.caps):
                await self._open(request)

    async def _open(self, request: HTTPRequest) -> None:
        link = Link(self._config, request.principal, "sse")
        state = await link.open(asked(request.headers, request.scope.get("query_string", b"")))
        session_id, name = link.session_id, link.name
        self._links.setdefault(session_id, {})[name] = link
        request.extra += naming(session_id, state)
        try:
            await self._serve(request, link, f"?session_id={session_id}&stream={name}")
        finally:
            link.close()
            del self._links[session_id][name]
            if not self._links[session_id]:
                del self._links[session_id]

    async def _serve(self, request: HTTPRequest, link: Link, query: str) -> None:
        pending = [event_stream.encode(_message_url(request.scope, query).encode(), name="endpoint")]

        async def chunk() -> bytes | None:
            if pending:
                return pending.pop()
            due = await link.next(KEEP_ALIVE_SECONDS)
            if due is None:
                return None
            return b"".join([event_stream.encode(one.message, id=one.event_id or None) for one in due])

        await request.start(200, EVENT_STREAM)
        if not await send_events(request, chunk, self._config.pool.statistics):
            link.run_out()
            return
        if link.end_reason == "drained":
            await request.send_chunk(event_stream.RECONNECT)
        await request.finish()


class _Messages(HTTPEndpoint):
    def __init__(self, config: EndpointConfig) -> None:
        super().__init__(config, {"POST": self._post})
        self._links = config.connections.links

    async def _post(self, request: HTTPRequest) -> None:
        check_json(request.headers)
        link = await self._link(request)
        messages = link.read(await self.body(request))
        link.accepted += 1
        try:
            await request.respond(202, PLAIN, ACCEPTED)
            *first, last = messages
            for message in first:
                await link.receive(message, request.headers)
            await link.receive(last, request.headers, partial(self.lay_down, request))
        finally:
            link.accepted -= 1

    async def _link(self, request: HTTPRequest) -> Link:
        """The connection that this message belongs to, if it is the same principal's (rule T5)."""
        named = named_by(request.headers)
        name, links = named.stream, self._links.get(named.session_id, {})
        link = links.get(name) or (next(iter(links.values())) if len(links) == 1 and not name else None)
        if link is None:
            try:
                workflow = await self._pool.lookup.find(request.principal, self._config.server, named.session_id)
            except UnknownSession:  # none has begun on it yet: it is where it came
                await self._pool.send_on(worker_of(name))
                raise
            if not workflow.opened.done():  # it has just been taken over
                await asyncio.shield(workflow.opened)
            link = Link.of(self._config, workflow, "sse", name)
        if link.principal != request.principal:
            raise UnknownSession("no such session; begin anew with initialize")
        link.check_agreement(named.asked)
        return link


class Named(NamedTuple):
    """What the URL of a message names, and its headers."""

    asked: Asked
    session_id: str
    stream: str
    """Its name; empty where there is none."""


def named_by(headers: RequestHeaders) -> Named:
    """What a message names.

    Raises:
        HTTPRefusal: 400, no session, or what it names disagrees.
    """
    found = asked(headers, headers.query)
    if found.session_id is None:
        raise HTTPRefusal(400, "missing_session", "Missing session ID: POST to the URL that the stream named")
    return Named(found, found.session_id, parse_qs(headers.query.decode()).get("stream", [""])[0])


def worker_of(name: str) -> int:
    """The number of the worker that gave a connection its name, or a ticket; 0 where it stands alone, or gave none."""
    number, dot, _ = name.partition(".")
    return int(number, 16) if dot and 0 < len(number) <= MAX_HEX and set(number) <= HEX else 0


def _message_url(scope: Scope, query: str) -> str:
    """Where the client's messages go: a path of this origin, below the root path that the application is mounted at."""
    root, path = scope.get("root_path", ""), scope["path"]
    whole = path if path.startswith(root) else root + path
    return f"{quote(whole.rpartition('/')[0])}/message{query}"
