"""Streamable HTTP for clients: POST, GET and DELETE of one server's endpoint, as raw ASGI.

The handshake revisions (2024-11-05 to 2025-11-25, rules T6-T10). A request of 2026-07-28 goes to `modern`, or is
answered with the revisions that are served, so that clients which speak both fall back at once.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from msgspec import Raw

from ..mux import envelope as wire_format
from ..mux.envelope import Envelope
from ..mux.errors import Everywhere, InvalidRequest, Overloaded, TrunklineError, UnknownSession, UnsupportedRevision
from ..mux.event_log import Position, Stream
from ..mux.exchange import Exchange, Outcome
from ..mux.limits import MAX_BODY_BYTES
from ..mux.placement import WHOLE, Concern, concern_of
from ..mux.pool import Arrival
from ..mux.record import WorkflowState
from ..mux.routing import BATCHES, LEGACY, PRIMING
from ..mux.streams import Reader
from ..mux.workflow import Workflow
from . import event_stream
from .asgi import ASKED, EVENT_STREAM, JSON, MEANT, RequestHeaders, WholeRequest, until_disconnect
from .endpoint import DEFAULT_REVISION, EndpointConfig, admitted_key, begin_unasked, picked, take_call
from .guard import Rejected, Unauthorized
from .headers import END, LAST_EVENT_ID, POOL, PROTOCOL_VERSION, SESSION_ID, accepts, workflow_key
from .http_endpoint import (
    JSON_TYPE,
    KEEP_ALIVE_SECONDS,
    STREAM_TYPE,
    HTTPEndpoint,
    HTTPRequest,
    check_json,
    send_events,
)
from .patience import Patience, Waiting
from .status import HTTPRefusal

DECIDE_SECONDS: Final = 0.05
"""A call that is unanswered for this long turns into a stream that can be resumed (guarantee G5)."""


class StreamableHTTPEndpoint(HTTPEndpoint):
    """The ASGI application of one server's `/mcp`; `take_at_once` is for a server that offers whole requests."""

    def __init__(self, config: EndpointConfig) -> None:
        super().__init__(config, {"POST": self._post, "GET": self._get, "DELETE": self._delete})
        self._patience = Patience(DECIDE_SECONDS)

    # POST: a message, or a batch.

    async def _post(self, request: HTTPRequest) -> None:
        headers = request.headers
        check_json(headers)
        if not accepts(headers, JSON_TYPE, STREAM_TYPE):
            raise HTTPRefusal(406, "accept", "Accept must list application/json and text/event-stream")
        body = await request.body()
        if not self._config.admission.pass_at_once():
            await self._wait(request, body)
        modern = self._config.modern
        if modern is not None and headers.get(PROTOCOL_VERSION) not in LEGACY and await modern.answer(request, body):
            return
        self._check_revision(request, body)
        is_batch = wire_format.is_batch(body)
        if is_batch:
            messages = wire_format.parse_batch(body, limit=MAX_BODY_BYTES)
            if any(message.method == "initialize" and message.kind == "request" for message in messages):
                raise InvalidRequest("initialize must not be part of a batch")
        else:
            message = wire_format.parse(body, limit=MAX_BODY_BYTES)
            messages, request.id = [message], message.id
            if message.method == "initialize" and message.kind == "request":
                await self._initialize(request, message)
                return
        if self._pool.number and messages[0].method == "notifications/cancelled" and not is_batch:
            await self._cancel(request, messages[0])
            return
        workflow = await self._workflow(request, concern=concern_of(messages))
        if is_batch and workflow.revision != BATCHES:
            raise InvalidRequest(f"revision {workflow.revision} has no batches")
        exchange = self._take(request, workflow, messages)
        if exchange is None:
            await request.respond(202, [])
        else:
            await self._answer(request, workflow, exchange, is_batch=is_batch)

    async def _wait(self, request: HTTPRequest, body: bytes) -> None:
        try:
            await self._config.admission.wait(request.principal)
        except Overloaded as error:
            self._pool.statistics.count("refused", error.limit)
            request.id = _id_in(body)
            raise

    async def _cancel(self, request: HTTPRequest, message: Envelope) -> None:
        """A cancellation, where the call that it means may be in flight at any worker: all are asked first (G1)."""
        meant = request.scope.get(MEANT)
        if meant is None:
            raise Everywhere
        server, key = self._config.server, self._key(request)
        found = self._pool.find_calls(request.principal, server, request.headers.get(SESSION_ID), key, message)
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
            if self._config.modern is not None and request.scope["method"] != "POST":
                raise HTTPRefusal(405, "method", "without a session, use POST", headers=[(b"allow", b"POST")])
            request.id = _id_in(body)
            raise UnsupportedRevision(
                "this server is served by sessions: begin with initialize, in one of the supported revisions",
                supported=list(LEGACY),
                requested=revision[:64],
            )

    async def _initialize(self, request: HTTPRequest, message: Envelope) -> None:
        key = self._key(request)
        session_id = request.headers.get(SESSION_ID)
        begun = await self._pool.begin(
            request.principal,
            self._config.server,
            message,
            self._arrival(request, session_id, key),
        )
        request.name(begun.workflow, begun.state if key is not None or session_id is not None else None)
        request.extra.append((POOL.encode(), begun.pool_result.encode()))
        await request.respond(200, [JSON], wire_format.result(message.id, Raw(begun.result)))

    def _take(self, request: HTTPRequest, workflow: Workflow, messages: list[Envelope]) -> Exchange | None:
        """Hand messages to their workflow; the exchange of those that are to be answered."""
        forwarded = picked(request.headers, self._config.forward_headers)
        calls = [message for message in messages if message.kind == "request"]
        workflow.come_by("http")
        exchange = workflow.exchange(len(calls)) if calls else None
        for message in messages:
            if message.kind == "notification":
                workflow.notify(message, forwarded)
            elif message.kind == "response":
                workflow.respond(message)
            elif exchange is not None:
                take_call(self._config, workflow, message, exchange, forwarded, request.headers)
        if exchange is not None:
            done = "miss" if request.began else exchange.pool_result
            request.extra.append((POOL.encode(), done.encode()))
        return exchange

    async def _answer(self, request: HTTPRequest, workflow: Workflow, exchange: Exchange, *, is_batch: bool) -> None:
        workflow.wire_came()
        try:
            outcome = await self._decided(request, workflow, exchange)
            await self._give(request, workflow, outcome, is_batch=is_batch)
        finally:
            workflow.wire_left()

    async def _give(self, request: HTTPRequest, workflow: Workflow, outcome: Outcome, *, is_batch: bool) -> None:
        if isinstance(outcome, Stream):
            await self._stream(request, workflow.streams.attach(outcome, 0))
        else:
            body = b"[%b]" % b",".join(outcome) if is_batch else outcome[0]
            await request.respond(200, [JSON], body)

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

    # POST without a task.

    def take_at_once(self, whole: WholeRequest) -> bool:
        """Take a message of a workflow that is at hand: nobody has to be asked, and nothing to be waited for.

        False where it is none, or is to be refused: nothing was done then, and the application is to be asked.
        """
        headers, config = whole.headers, self._config
        if whole.scope["method"] != "POST" or (headers.checked is not self and not self._checks(headers)):
            return False
        if headers.query:
            return False
        request = HTTPRequest(headers, whole.receive, whole.send, whole.scope)
        request.cors = config.guard.cors(headers)
        try:
            request.principal = config.authenticate(headers)
        except Unauthorized as error:
            self.refuse_at_once(whole, request, error)
            return True
        try:
            message = wire_format.parse(whole.body, limit=MAX_BODY_BYTES)
            workflow = self._at_hand(request, message)
            if workflow is None:
                return False
            waiter = None if config.admission.pass_at_once() else config.admission.queue(request.principal)
        except TrunklineError:
            return False
        if waiter is None:
            self._take_whole(whole, request, workflow, message)
        else:
            whole.left = partial(config.admission.withdraw, request.principal, waiter)
            waiter.add_done_callback(partial(self._turn_came, whole, request, message))
        return True

    def _at_hand(self, request: HTTPRequest, message: Envelope) -> Workflow | None:
        """The workflow of a message, where this worker has it and nobody else needs to be asked.

        Raises:
            HTTPRefusal: the headers disagree with it.
        """
        headers = request.headers
        concern = concern_of([message])
        workflow = self._pool.at_hand(request.principal, self._config.server, headers[SESSION_ID], concern)
        if workflow is None or not workflow.opened.done() or self._is_for_more(message):
            return None
        self._check_agreement(request, workflow)
        return workflow

    def _turn_came(self, whole: WholeRequest, request: HTTPRequest, message: Envelope, _: asyncio.Future[None]) -> None:
        """It waited for its turn: meanwhile much may have changed."""
        whole.left = None
        try:
            workflow = self._at_hand(request, message)
        except Exception as error:
            self.refuse_at_once(whole, request, error)
            return
        if workflow is None:
            whole.decline()
        else:
            self._take_whole(whole, request, workflow, message)

    def _take_whole(self, whole: WholeRequest, request: HTTPRequest, workflow: Workflow, message: Envelope) -> None:
        request.id = message.id
        try:
            request.name(workflow, "resumed" if workflow_key(request.headers) is not None else None)
            exchange = self._take(request, workflow, [message])
        except Exception as error:
            self.refuse_at_once(whole, request, error)
            return
        if exchange is None:
            whole.reply(202, request.head([]), b"")
        else:
            _Answering(self, whole, request, workflow, exchange).begin(self._patience)

    def refuse_at_once(self, whole: WholeRequest, request: HTTPRequest, error: Exception) -> None:
        """Say what went wrong."""
        answer = self._refusal(request, error)
        whole.reply(answer.status, request.head(answer.headers), answer.body)

    def _checks(self, headers: RequestHeaders) -> bool:
        """Whether the headers are those of a message in a session, from a client that may speak here at all."""
        revision = headers.get(PROTOCOL_VERSION)
        if SESSION_ID not in headers or (revision is not None and revision not in LEGACY):
            return False
        try:
            self._config.guard.check(headers)
            check_json(headers)
        except (Rejected, HTTPRefusal):
            return False
        if accepts(headers, JSON_TYPE, STREAM_TYPE):
            headers.checked = self
        return headers.checked is self

    def _is_for_more(self, message: Envelope) -> bool:
        """Whether it concerns more than one workflow of this worker."""
        method = message.method
        return method == "initialize" or (method == "notifications/cancelled" and self._pool.number > 0)

    async def go_on(self, request: HTTPRequest, workflow: Workflow, stream: Stream) -> None:
        """Send an answer that comes in parts."""
        try:
            await self._stream(request, workflow.streams.attach(stream, 0))
        except Exception as error:
            await self._refuse(request, error)
        finally:
            workflow.wire_left()

    # GET: what belongs to no request, or what was missed.

    async def _get(self, request: HTTPRequest) -> None:
        self._check_revision(request, b"")
        if not accepts(request.headers, STREAM_TYPE):
            raise HTTPRefusal(406, "accept", "Accept must list text/event-stream")
        with self._config.admission.place(request.principal, self._config.limits):
            await self._listen(request)

    async def _listen(self, request: HTTPRequest) -> None:
        event_id = request.headers.get(LAST_EVENT_ID)
        if event_id is None:
            workflow = await self._workflow(request, create=False)
            if self._pool.draining:
                await request.respond(200, EVENT_STREAM, event_stream.RECONNECT)
            else:
                await self._stream(request, workflow.streams.attach_standalone())
            return
        position = Position.read(event_id)
        if position is None:
            raise UnknownSession("no such event; begin anew with initialize")
        workflow = await self._pool.find_position(request.principal, self._config.server, position)
        self._check_agreement(request, workflow)
        try:
            reader = workflow.streams.resume(position)
        except TrunklineError:
            self._pool.statistics.count("resumes", "http", "trimmed")
            raise
        self._pool.statistics.count("resumes", "http", "resumed")
        await self._stream(request, reader)

    async def _stream(self, request: HTTPRequest, reader: Reader) -> None:
        """Send what the reader brings until its end, the client's leaving, or a client that takes nothing."""

        async def chunks() -> bytes | None:
            events = await reader.next(KEEP_ALIVE_SECONDS)
            if events is None:
                return None
            return b"".join([event_stream.encode(event.message, id=reader.event_id(event)) for event in events])

        try:
            await request.start(200, EVENT_STREAM)
            is_over = await send_events(request, chunks)
        finally:
            reader.close()
        if is_over:
            await request.finish()
        else:
            self._pool.statistics.count("slow_clients", self._config.server)

    # DELETE: the end, or for a keyed workflow only a good-bye.

    async def _delete(self, request: HTTPRequest) -> None:
        self._check_revision(request, b"")
        workflow = await self._workflow(request, create=False)
        if workflow.record.key is None or request.headers.get(END, "").strip().lower() == "workflow":
            await self._pool.end(workflow, "deleted")
        await request.respond(200, [])

    # Which workflow.

    async def _workflow(self, request: HTTPRequest, *, create: bool = True, concern: Concern = WHOLE) -> Workflow:
        key = self._key(request)
        session_id = request.headers.get(SESSION_ID)
        state: WorkflowState = "resumed"
        if session_id is not None:
            pool, principal, server = self._pool, request.principal, self._config.server
            workflow = pool.at_hand(principal, server, session_id, concern) or await pool.find(
                principal, server, session_id, concern
            )
        elif key is not None:
            found = await self._pool.find_key(request.principal, self._config.server, key, concern)
            if found is None and not create:
                raise UnknownSession("this key names no session yet; begin with initialize")
            workflow, state = (found, state) if found is not None else await self._begin_unasked(request, key)
        else:
            raise HTTPRefusal(
                400, "missing_session", "Missing session ID: send Mcp-Session-Id, or begin with initialize"
            )
        if not workflow.opened.done():
            await asyncio.shield(workflow.opened)
        self._check_agreement(request, workflow)
        request.name(workflow, state if key is not None else None)
        return workflow

    async def _begin_unasked(self, request: HTTPRequest, key: str) -> tuple[Workflow, WorkflowState]:
        revision = request.headers.get(PROTOCOL_VERSION, DEFAULT_REVISION)
        begun = await begin_unasked(self._config, request.principal, revision, self._arrival(request, None, key))
        request.began = begun.pool_result == "miss"
        return begun.workflow, begun.state

    def _arrival(self, request: HTTPRequest, session_id: str | None, key: str | None) -> Arrival:
        fixed = picked(request.headers, self._config.session_headers)
        return Arrival(session_id, key, fixed, generation=self._config.generation)

    def _key(self, request: HTTPRequest) -> str | None:
        return admitted_key(self._config, request.principal, workflow_key(request.headers))

    def _check_agreement(self, request: HTTPRequest, workflow: Workflow) -> None:
        """Session id, key, event id and version header must name the same thing."""
        headers, record = request.headers, workflow.record
        session_id, key, revision = headers.get(SESSION_ID), workflow_key(headers), headers.get(PROTOCOL_VERSION)
        if (session_id is not None and session_id != record.session_id) or (key is not None and key != record.key):
            raise HTTPRefusal(400, "disagree", "Mcp-Session-Id, Trunkline-Workflow and Last-Event-ID disagree")
        if revision is not None and revision != record.revision:
            raise HTTPRefusal(
                400, "revision", f"MCP-Protocol-Version {revision} contradicts the session's {record.revision}"
            )


class _Answering:
    """A call whose answer goes out by callbacks, without a task; a stream gets one once it is decided for."""

    __slots__ = ("_endpoint", "_exchange", "_request", "_timer", "_whole", "_workflow")

    def __init__(
        self,
        endpoint: StreamableHTTPEndpoint,
        whole: WholeRequest,
        request: HTTPRequest,
        workflow: Workflow,
        exchange: Exchange,
    ) -> None:
        self._endpoint = endpoint
        self._whole = whole
        self._request = request
        self._workflow = workflow
        self._exchange = exchange
        self._timer: Waiting | None = None

    def begin(self, patience: Patience) -> None:
        """Answer once the form of the answer is decided, which takes no longer than this."""
        self._workflow.wire_came()
        if not self._exchange.is_decided:
            if self._workflow.revision >= PRIMING:
                self._timer = patience.begin(self._workflow.loop, self._exchange.decide_for_stream)
            else:
                self._whole.left = self._left
        self._exchange.when_decided(self._decided)

    def _left(self) -> None:
        """The client has gone, and cannot resume."""
        self._exchange.cut = True
        self._workflow.note("cut")

    def _decided(self, outcome: Outcome) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._whole.left = None
        if isinstance(outcome, Stream):
            self._whole.go_on(self._endpoint.go_on(self._request, self._workflow, outcome))
            return
        try:
            self._workflow.wire_left()
            self._whole.reply(200, self._request.head([JSON]), outcome[0])
        except Exception as error:
            self._endpoint.refuse_at_once(self._whole, self._request, error)


def _id_in(body: bytes) -> bytes:
    """The id of the request in a body, where there is one that can be read."""
    try:
        return wire_format.parse(body, limit=MAX_BODY_BYTES).id
    except TrunklineError:
        return b""
