"""Requests of 2026-07-28 over HTTP: each POST is an exchange of its own, without a session.

What a request must hold, and which status an error has, is decided in `mux.modern`; whom it goes to is behind
`ModernHTTPServer`. Here it is admitted, its answer is sent as JSON or as a stream as it comes, and a client that leaves
cancels it (rule E13).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

from ..mux import call_log, modern
from ..mux import envelope as wire_format
from ..mux.burden import LARGE_BYTES
from ..mux.envelope import Envelope
from ..mux.errors import Cancelled, InvalidRequest, Overloaded, SessionLost, TrunklineError, UnsupportedRevision
from ..mux.principal import Principal
from ..mux.statistics import Statistics, method_label
from . import event_stream
from .asgi import EVENT_STREAM, IDENTITY_ENDED, JSON, SEND_SECONDS, WholeRequest, until_disconnect
from .endpoint import EndpointConfig, picked
from .headers import PROTOCOL_VERSION, SESSION_ID
from .http_endpoint import (
    KEEP_ALIVE_SECONDS,
    HTTPEndpoint,
    HTTPRequest,
)
from .patience import Patience, Waiting
from .status import INVALID_CREDENTIAL, Unauthorized
from .tracing import Tracer, begin_span, context_of

if TYPE_CHECKING:
    from ..mux.ports import Span
    from .upstream.modern_http import ModernHTTPServer
    from .upstream.modern_passage import Passage

WATCH_SECONDS: Final = 0.05
"""A client is taken to stay for this long: whoever leaves sooner is noticed then."""


class ModernRequests:
    """The requests of this era to one server, of all clients.

    At most `max_inflight` of them are under way for each principal, and as many streams of subscriptions. `headers` are
    those of clients that go on.
    """

    def __init__(
        self,
        server: str,
        upstream: ModernHTTPServer,
        statistics: Statistics,
        *,
        max_inflight: int,
        headers: Sequence[str] = (),
        tracer: Tracer | None = None,
    ) -> None:
        self._server = server
        self._upstream = upstream
        self._statistics = statistics
        self._max_inflight = max_inflight
        self._picked = headers
        self._tracer = tracer
        self._inflight: Counter[tuple[Principal, bool]] = Counter()
        """How many are under way for each principal; apart, since they last, how many streams of subscriptions."""
        self._passages: set[Passage] = set()
        self._patience = Patience(WATCH_SECONDS)
        self._draining: anyio.Event | None = None
        """Set once nothing is under way, after a drain began."""
        self._successor: ModernRequests | None = None
        """Where what still comes goes, once the settings of the server have changed."""

    @property
    def inflight(self) -> int:
        """How many calls wait for an answer; a stream of subscriptions has its own, and lasts as its client likes."""
        return sum(count for (_, is_listening), count in self._inflight.items() if not is_listening)

    async def answer(self, request: HTTPRequest, body: bytes) -> bool:
        """Answer a POST of this era. False for others, and where the server speaks sessions only: nothing was done."""
        if self._successor is not None:
            return await self._successor.answer(request, body)
        revision = request.headers.get(PROTOCOL_VERSION)
        if (revision is None and SESSION_ID in request.headers) or not modern.claims(body, revision):
            return False
        try:
            message = modern.read(body)
            request.id = message.id
            self._admit(request.principal, message)
            try:
                with _Watch(request, self._patience) as watch:
                    return await self._take(request, message, body, watch)
            finally:
                self._leave(request.principal, message)
        except TrunklineError as error:
            self._statistics.count("refused", error.word)
            await _fail(request, error)
        return True

    def take(self, whole: WholeRequest, request: HTTPRequest, turn: Callable[[], bool]) -> bool:
        """See `Sessionless.take`: what asks nobody else, and waits for nothing but the server's answer."""
        if self._successor is not None:
            return self._successor.take(whole, request, turn)
        revisions, body = self._upstream.known, whole.body
        if not modern.is_spoken(revisions) or len(body) > LARGE_BYTES:
            return False
        message = modern.read(body)
        if message.kind == "notification" or message.method == modern.LISTEN:
            return False
        request.id = message.id
        headers = self._checked(request, message, revisions)
        self._admit(request.principal, message)
        try:
            started = asyncio.get_running_loop().time()
            call = self._forward(request, message, body, headers, started) if turn() else None
        except BaseException:
            self._leave(request.principal, message)
            raise
        if call is None:
            self._leave(request.principal, message)
            return False
        _Answering(self, whole, call).begin(self._patience)
        return True

    def over(self, call: _Call) -> None:
        """A request that was taken so is over, or nobody takes any more of it."""
        try:
            self._end(call)
        finally:
            self._leave(call.request.principal, call.message)

    def give_way(self, successor: ModernRequests | None) -> None:
        """The settings of the server have changed: `drain` this next, and let others go to the successor."""
        self._successor = successor

    async def drain(self, timeout: float) -> bool:
        """Take nothing new; wait until every request has ended, at most `timeout` seconds; end what is left (G8).

        Streams of subscriptions end at once: nothing else ends them. True if no other request was cut.
        """
        self._draining = self._draining or anyio.Event()
        cause = SessionLost("the gateway is shutting down", executed="unknown")
        for passage in [passage for passage in self._passages if passage.is_listening]:
            passage.stop(cause)
        if not self._inflight:
            return True
        with anyio.move_on_after(timeout):
            await self._draining.wait()
        is_complete = not self._inflight
        self._upstream.stop(SessionLost(cause.message, executed="no"))
        for passage in list(self._passages):
            passage.stop(cause)
        return is_complete

    # Inside.

    def _admit(self, principal: Principal, message: Envelope) -> None:
        """Take a place among the requests that are under way, until it is left.

        Raises:
            Overloaded: there is none.
            SessionLost: the gateway is shutting down, or the server is gone from its settings.
        """
        if self._draining is not None:
            raise SessionLost("this server is no longer served, or the gateway is shutting down", executed="no")
        kind = (principal, message.method == modern.LISTEN)
        if self._inflight[kind] >= self._max_inflight:
            raise Overloaded("too many requests in flight", limit="max_inflight_per_workflow")
        self._inflight[kind] += 1

    def _leave(self, principal: Principal, message: Envelope) -> None:
        kind = (principal, message.method == modern.LISTEN)
        self._inflight[kind] -= 1
        if not self._inflight[kind]:
            del self._inflight[kind]
        if self._draining is not None and not self._inflight:
            self._draining.set()

    async def _take(self, request: HTTPRequest, message: Envelope, body: bytes, watch: _Watch) -> bool:
        """Hold a message against what the server speaks and its headers say, and send it on.

        Raises:
            InvalidMessage: it does not go on.
        """
        started = asyncio.get_running_loop().time()
        try:
            revisions = await self._upstream.revisions()
        except TrunklineError as error:
            self._count(request, message, error.reason, started, error.message)
            await _fail(request, error)
            return True
        if not modern.is_spoken(revisions):
            return False
        if watch.has_left:  # while it was found out what the server speaks
            self._count(request, message, Cancelled.reason, started, "")
            return True
        headers = self._checked(request, message, revisions)
        if message.kind == "notification":  # nothing here could act on it, and a cancel could mean anybody's (rule E13)
            await request.respond(202, [])
            return True
        call = self._forward(request, message, body, headers, started)
        passage = watch.passage = call.passage
        try:
            await (self._bring_for_a_while(request, passage) if passage.is_listening else self.bring(request, passage))
        finally:
            self._end(call)
        return True

    def _checked(self, request: HTTPRequest, message: Envelope, revisions: Sequence[str]) -> dict[str, str]:
        """The headers that go on with a message. Raises as `modern.checked_headers`."""
        lines = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.scope["headers"]]
        return modern.checked_headers(message, lines, revisions)

    def _forward(
        self, request: HTTPRequest, message: Envelope, body: bytes, headers: dict[str, str], started: float
    ) -> _Call:
        """Put a request on its way, until it is ended.

        Raises:
            InvalidMessage: it does not go on.
        """
        text = modern.body_of(message, body)
        headers.update(picked(request.headers, self._picked))
        context = context_of(request.headers, message, self._server, self._statistics)
        span, context = begin_span(self._tracer, self._server, message, context, request.principal)
        headers.update(context)
        try:
            passage = self._upstream.send(message, text, headers)
        except ValueError as error:
            call_log.end_span(span, InvalidRequest.reason)
            raise InvalidRequest(str(error)) from error
        self._passages.add(passage)
        return _Call(request, message, passage, span, started)

    def _end(self, call: _Call) -> None:
        """Nobody takes any more of it."""
        passage = call.passage
        passage.close()
        self._passages.discard(passage)
        call_log.end_span(call.span, passage.outcome)
        self._count(call.request, call.message, passage.outcome, call.started, passage.why)

    def _count(self, request: HTTPRequest, message: Envelope, outcome: str, started: float, why: str) -> None:
        method, seconds = method_label(message.method), asyncio.get_running_loop().time() - started
        self._statistics.count("calls", self._server, method, outcome)
        if message.method != modern.LISTEN:  # which lasts as long as its client likes
            self._statistics.observe("call_seconds", seconds, self._server)
        if call_log.is_told(outcome):
            about = {"server": self._server, "principal": request.principal.digest()}
            call_log.tell(outcome, why, about, method=method, id=message.id, seconds=seconds, sent=0)

    async def _bring_for_a_while(self, request: HTTPRequest, passage: Passage) -> None:
        """A stream of subscriptions ends with the identity that opened it, as with everything else (rule L28).

        Raises:
            Unauthorized: before it began.
        """
        with request.headers.held():
            await self.bring(request, passage)
            return
        if not request.started:
            raise Unauthorized("the identity has ended", challenge=INVALID_CREDENTIAL)
        self._statistics.count("refused", IDENTITY_ENDED)
        with anyio.move_on_after(SEND_SECONDS):
            await request.finish()

    async def bring(self, request: HTTPRequest, passage: Passage) -> None:
        """Send the answer as it comes."""
        try:
            form = await passage.form()
        except TrunklineError as error:
            await _fail(request, error)
            return
        if form.whole is not None:
            await request.respond(form.status, [JSON], form.whole)
            return
        await request.start(form.status, EVENT_STREAM)
        if await self._send(request, passage):
            with anyio.move_on_after(SEND_SECONDS):
                await request.finish()

    async def _send(self, request: HTTPRequest, passage: Passage) -> bool:
        """Send the events of a stream. False for a client that takes nothing: it ends unfinished."""
        while True:
            try:
                piece = await passage.next(KEEP_ALIVE_SECONDS)
            except TrunklineError as error:
                if passage.is_listening:  # ended without its result: its client knows what that means (rule L28)
                    return True
                return await self._send_piece(request, event_stream.encode(wire_format.failure(request.id, error)))
            if piece is None:
                return True
            if not await self._send_piece(request, piece or event_stream.KEEP_ALIVE):
                return False

    async def _send_piece(self, request: HTTPRequest, piece: bytes) -> bool:
        """False for a client that takes nothing."""
        with anyio.move_on_after(SEND_SECONDS) as patience:
            await request.send_chunk(piece)
        if patience.cancelled_caught:
            self._statistics.count("slow_clients", self._server)
        return not patience.cancelled_caught


class _Call(NamedTuple):
    """A request that is on its way."""

    request: HTTPRequest
    message: Envelope
    passage: Passage
    span: Span | None
    started: float


class _Answering:
    """A call whose answer goes out by callbacks, without a task; a stream gets one once it begins."""

    __slots__ = ("_call", "_requests", "_timer", "_whole")

    def __init__(self, requests: ModernRequests, whole: WholeRequest, call: _Call) -> None:
        self._requests = requests
        self._whole = whole
        self._call = call
        self._timer: Waiting

    def begin(self, patience: Patience) -> None:
        """Answer as soon as the form of the answer is decided; look out for a client that leaves after this time."""
        self._timer = patience.begin(asyncio.get_running_loop(), self._look)
        self._call.passage.formed = self._formed

    def _look(self) -> None:
        if self._whole.has_left:
            self._call.passage.close()
        else:
            self._whole.left = self._call.passage.close

    def _formed(self) -> None:
        whole, request, passage = self._whole, self._call.request, self._call.passage
        try:
            status, body = passage.decided
            if body is None:
                whole.go_on(self._bring())
                return
        except TrunklineError as error:
            status, body = _refusal(request, error)
        try:
            whole.reply(status, request.head([JSON]), body)
        finally:
            self._over()

    async def _bring(self) -> None:
        try:
            await self._requests.bring(self._call.request, self._call.passage)
        finally:
            self._over()

    def _over(self) -> None:
        self._timer.cancel()
        self._whole.left = None
        self._requests.over(self._call)


class ModernEndpoint(HTTPEndpoint):
    """The ASGI application of a server's `/mcp` where requests of this era alone are offered (`eras = ["modern"]`)."""

    def __init__(self, config: EndpointConfig, requests: ModernRequests) -> None:
        super().__init__(config, {"POST": self._post})
        self._requests = requests

    async def _post(self, request: HTTPRequest) -> None:
        body = await self.message(request)
        if await self._requests.answer(request, body):
            return
        revision = request.headers.get(PROTOCOL_VERSION)
        supported: list[str] = []  # what the server speaks is not offered here
        if not modern.claims(body, revision):
            request.id, asked = _asked(body)
            revision = revision or asked
            supported = list(modern.REVISIONS)
        raise UnsupportedRevision(
            "this server is served without sessions, in the supported revisions",
            supported=supported,
            requested=(revision or "")[:64],
        )


async def _fail(request: HTTPRequest, error: TrunklineError) -> None:
    """An error response under the status that it has in this era (rule E20)."""
    if not request.started:
        status, body = _refusal(request, error)
        await request.respond(status, [JSON], body)


def _refusal(request: HTTPRequest, error: TrunklineError) -> tuple[int, bytes]:
    """The status and the body of an error response in this era (rule E20)."""
    return modern.status_of(error.code), wire_format.failure(request.id, error)


class _Watch:
    """Looks out for a client that leaves, and closes its passage then (rule E13); most calls are over before."""

    def __init__(self, request: HTTPRequest, patience: Patience) -> None:
        self.has_left = False
        self.passage: Passage | None = None
        """What leads to the server, once it does."""
        self._receive = request.receive
        self._patience = patience
        self._task: asyncio.Task[None] | None = None
        self._timer: Waiting

    def __enter__(self) -> _Watch:
        self._timer = self._patience.begin(asyncio.get_running_loop(), self._look)
        return self

    def __exit__(self, *raised: object) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            # It leads here by how it was cancelled: a request would wait for the garbage collector.
            self._task = None

    def _look(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        await until_disconnect(self._receive)
        self.has_left = True
        if self.passage is not None:
            self.passage.close()


def _asked(body: bytes) -> tuple[bytes, str | None]:
    """The id of a request, and the revision that it asks for by `initialize`, as far as they can be read."""
    try:
        message = modern.read(body)
        params = message.params() or {}
        return message.id, wire_format.string_of(params.get("protocolVersion"))
    except TrunklineError:
        return b"", None
