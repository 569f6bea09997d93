"""Streamable HTTP for clients: POST, GET and DELETE of one server's endpoint, as raw ASGI.

The handshake revisions (2024-11-05 to 2025-11-25, rules T6-T10). A request of 2026-07-28 goes to `modern`, or is
answered with the revisions that are served, so that clients which speak both fall back at once.
"""

from __future__ import annotations

import asyncio

from ..mux import envelope as wire_format
from ..mux.envelope import Envelope
from ..mux.errors import (
    Everywhere,
    InvalidRequest,
    SessionLost,
    TrunklineError,
    UnknownServer,
    UnknownSession,
    UnsupportedRevision,
)
from ..mux.event_log import Position, Stream
from ..mux.exchange import Exchange, Outcome
from ..mux.limits import MAX_BODY_BYTES
from ..mux.placement import WHOLE, Concern, concern_of
from ..mux.record import WorkflowState
from ..mux.routing import BATCHES, LEGACY, PRIMING
from ..mux.workflow import Workflow
from . import event_stream
from .asgi import ASKED, EVENT_STREAM, JSON, MEANT, has_left, until_disconnect
from .endpoint import DEFAULT_REVISION, EndpointConfig, begin_unasked, is_opening, looking, picked, read_batch
from .headers import LAST_EVENT_ID, PROTOCOL_VERSION, SESSION_ID
from .http_endpoint import HTTPEndpoint, HTTPRequest, requests_in
from .media import STREAM_TYPE, accepts
from .status import HTTPRefusal
from .streamable_request import (
    arrival_of,
    check_agreement,
    check_names,
    give_events,
    greet,
    is_good_bye,
    key_of,
    take,
    undecided,
)


class StreamableHTTPEndpoint(HTTPEndpoint):
    """The ASGI application of one server's `/mcp`."""

    def __init__(self, config: EndpointConfig) -> None:
        super().__init__(config, {"POST": self._post, "GET": self._get, "DELETE": self._delete})
        self._patience = undecided()

    # POST: a message, or a batch.

    async def _post(self, request: HTTPRequest) -> None:
        body = await self.message(request)
        modern, revision = self._config.modern, request.headers.get(PROTOCOL_VERSION)
        if modern is not None and revision not in LEGACY and await modern.answer(request, body):
            return
        self._check_revision(request, body)
        is_batch = wire_format.is_batch(body)
        if is_batch:
            messages = read_batch(body)
            request.batch = requests_in(messages)
        else:
            message = wire_format.parse(body, limit=MAX_BODY_BYTES)
            messages, request.id = [message], message.id
            if is_opening(message):
                await self._initialize(request, message)
                return
        if self._pool.number and messages[0].method == "notifications/cancelled" and not is_batch:
            await self._cancel(request, messages[0])
            return
        async with looking(self._pool, request.scope):
            workflow = await self._workflow(request, concern=concern_of(messages))
        await self.hand_on(request)
        if is_batch and workflow.revision != BATCHES:
            raise InvalidRequest(f"revision {workflow.revision} has no batches")
        self.lay_down(request)  # its calls take it up
        exchange = take(self._config, request, workflow, messages)
        if exchange is None:
            await request.respond(202, [])
        else:
            await self._answer(request, workflow, exchange, is_batch=is_batch)

    async def _cancel(self, request: HTTPRequest, message: Envelope) -> None:
        """A cancellation, where the call that it means may be in flight at any worker: all are asked first (G1)."""
        meant = request.scope.get(MEANT)
        if meant is None:
            raise Everywhere
        server, key = self._config.server, key_of(self._config, request)
        found = self._pool.lookup.find_calls(request.principal, server, request.headers.get(SESSION_ID), key, message)
        if meant == ASKED:
            await request.respond(200, [], b"%d" % len(found))
            return
        if meant == len(found) == 1:
            found[0].notify(message, picked(request.headers, self._config.forward_headers))
        else:
            self._pool.statistics.count("ambiguous_cancel" if meant > 1 else "unknown_cancel", server)
        await request.respond(202, [])

    def _check_revision(self, request: HTTPRequest, body: bytes) -> None:
        revision = request.headers.get(PROTOCOL_VERSION)
        if revision is not None and revision not in LEGACY:
            if self._config.server not in self._pool.upstreams:
                raise UnknownServer(self._config.server)
            if self._config.modern is not None and request.scope["method"] != "POST":
                raise HTTPRefusal(405, "method", "without a session, use POST", headers=[(b"allow", b"POST")])
            request.identify(body)
            raise UnsupportedRevision(
                "this server is served by sessions: begin with initialize, in one of the supported revisions",
                supported=list(LEGACY),
                requested=revision[:64],
            )

    async def _initialize(self, request: HTTPRequest, message: Envelope) -> None:
        principal, server, arrival = request.principal, self._config.server, arrival_of(self._config, request)
        async with looking(self._pool, request.scope):
            if arrival.session_id is not None and arrival.key is not None:
                check_names(request.headers, await self._pool.lookup.find(principal, server, arrival.session_id))
            begun = await self._pool.begin(principal, server, message, arrival)
        if begun.state != "resumed" and begun.workflow.record.key is None and await has_left(request.receive):
            begun.workflow.bind_to_wires()
        await request.respond(200, [JSON], greet(request, message, begun))

    async def _answer(self, request: HTTPRequest, workflow: Workflow, exchange: Exchange, *, is_batch: bool) -> None:
        workflow.wire_came()
        try:
            outcome = await self._decided(request, workflow, exchange)
            if isinstance(outcome, Stream):
                await give_events(self._config, request, workflow.streams.attach(outcome, 0))
            else:
                body = b"[%b]" % b",".join(map(bytes, outcome)) if is_batch else bytes(outcome[0])
                await request.respond(200, [JSON], body)
        finally:
            workflow.wire_left()

    async def _decided(self, request: HTTPRequest, workflow: Workflow, exchange: Exchange) -> Outcome:
        """The form of the answer. A client that can resume gets a stream when it takes long; another has to wait."""
        if exchange.is_decided:
            return await exchange.ready
        loop = workflow.loop
        watchers: list[asyncio.Task[None]] = []

        async def watch() -> None:
            await until_disconnect(request.receive)
            exchange.cut = True
            workflow.note("cut")

        def decide() -> None:
            if workflow.revision >= PRIMING:
                exchange.decide_for_stream()
            else:
                watchers.append(loop.create_task(watch()))

        timer = self._patience.begin(loop, decide)
        try:
            return await exchange.ready
        finally:
            timer.cancel()
            for watcher in watchers:
                watcher.cancel()

    # GET: what belongs to no request, or what was missed.

    async def _get(self, request: HTTPRequest) -> None:
        self._check_revision(request, b"")
        if not accepts(request.headers, STREAM_TYPE):
            raise HTTPRefusal(406, "accept", "Accept must list text/event-stream")
        async with self.coming_back(request):
            with self._config.admission.place(request.principal, self._config.server, self._pool.caps):
                await self._listen(request)

    async def _listen(self, request: HTTPRequest) -> None:
        event_id = request.headers.get(LAST_EVENT_ID)
        if not event_id:
            workflow = await self._workflow(request, create=False)
            if self._pool.draining:
                await request.respond(200, EVENT_STREAM, event_stream.RECONNECT)
            else:
                by_key = SESSION_ID not in request.headers
                await give_events(self._config, request, workflow.streams.attach_standalone(by_key=by_key))
            return
        position = Position.read(event_id)
        if position is None:
            raise UnknownSession("no such event; begin anew with initialize")
        workflow = await self._pool.lookup.find_position(request.principal, self._config.server, position)
        check_agreement(request.headers, workflow)
        try:
            reader = workflow.streams.resume(position)
        except TrunklineError:
            self._pool.statistics.count("resumes", "http", "trimmed")
            raise
        self._pool.statistics.count("resumes", "http", "resumed")
        await give_events(self._config, request, reader)

    # DELETE: the end, or for a keyed workflow only a good-bye.

    async def _delete(self, request: HTTPRequest) -> None:
        self._check_revision(request, b"")
        async with looking(self._pool, request.scope):
            workflow = await self._workflow(request, create=False)
        if not is_good_bye(request.headers, workflow):
            await self._pool.end(workflow, "deleted")
        await request.respond(200, [])

    # Which workflow.

    async def _workflow(self, request: HTTPRequest, *, create: bool = True, concern: Concern = WHOLE) -> Workflow:
        key = key_of(self._config, request)
        session_id = request.headers.get(SESSION_ID)
        state: WorkflowState = "resumed"
        if session_id is not None:
            workflow = await self._named(request, session_id, key, concern)
        elif key is not None:
            found = await self._pool.lookup.find_key(request.principal, self._config.server, key, concern)
            if found is None and not create:
                raise UnknownSession("this key names no session yet; begin with initialize")
            workflow, state = (found, state) if found is not None else await self._begin_unasked(request)
        else:
            raise HTTPRefusal(
                400, "missing_session", "Missing session ID: send Mcp-Session-Id, or begin with initialize"
            )
        if not workflow.opened.done():
            await asyncio.shield(workflow.opened)
        check_agreement(request.headers, workflow)
        request.name(workflow, state if key is not None else None)
        return workflow

    async def _named(self, request: HTTPRequest, session_id: str, key: str | None, concern: Concern) -> Workflow:
        """The workflow of that session id; where the drain may have ended it, calls are told so (G8)."""
        lookup, principal, server = self._pool.lookup, request.principal, self._config.server
        workflow = lookup.at_hand(principal, server, session_id, key, concern)
        if workflow is not None:
            return workflow
        try:
            return await lookup.find(principal, server, session_id, concern)
        except UnknownSession:
            if self._pool.draining and concern.are_calls:
                raise SessionLost("the gateway is shutting down", executed="no") from None
            raise

    async def _begin_unasked(self, request: HTTPRequest) -> tuple[Workflow, WorkflowState]:
        revision = request.headers.get(PROTOCOL_VERSION, DEFAULT_REVISION)
        begun = await begin_unasked(self._config, request.principal, revision, arrival_of(self._config, request))
        request.pool_result = begun.pool_result
        return begun.workflow, begun.state
