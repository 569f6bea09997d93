"""What every HTTP endpoint does with a request before and after its own part: guard, identity, refusals, streams."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import anyio

from ..mux import envelope as wire_format
from ..mux.burden import LARGE_BYTES
from ..mux.envelope import Envelope
from ..mux.errors import Elsewhere, Overloaded, TrunklineError, UnknownSession, WorkflowEnded
from ..mux.limits import MAX_BODY_BYTES
from ..mux.ports import PoolResult
from ..mux.principal import Principal
from ..mux.record import WorkflowState
from ..mux.statistics import Statistics
from ..mux.workflow import Workflow
from . import event_stream
from .asgi import (
    EVENT_STREAM,
    GRANT,
    IDENTITY_ENDED,
    SEND_SECONDS,
    BodyTooLarge,
    BodyTooSlow,
    ClientLeft,
    RawHeaders,
    Receive,
    RequestHeaders,
    Scope,
    Send,
    headers_of,
    is_settled,
    read_body,
    respond,
    until_disconnect,
)
from .endpoint import EndpointConfig
from .headers import SESSION_ID, naming
from .media import JSON_TYPE, STREAM_TYPE, accepts, content_type
from .status import Answer, HTTPRefusal, answer_to

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS: Final = 15.0
AT_ONCE_BYTES: Final = 16_384
"""An answer up to this size is handed over at once, and needs no time-out."""


class HTTPRequest:
    """One HTTP request of a client, and the state of its answer."""

    __slots__ = (
        "_send",
        "batch",
        "burden",
        "cors",
        "extra",
        "headers",
        "id",
        "pool_result",
        "principal",
        "receive",
        "scope",
        "started",
    )

    def __init__(self, headers: RequestHeaders, receive: Receive, send: Send, scope: Scope) -> None:
        self.headers = headers
        self.scope = scope
        self.receive = receive
        self._send = send
        self.principal: Principal
        self.burden = 0
        """What its body has of the pool's `Burden`, in bytes."""
        self.pool_result: PoolResult | None = None
        """The worst that the pool had to do for it; None where it was not asked."""
        self.id = b""
        """The raw id of its JSON-RPC request, once it was read, so that a refusal can name it."""
        self.batch: Sequence[bytes] = ()
        """The raw ids of its requests, where it is a batch: each of them waits for an answer."""
        self.cors = headers.checks.cors
        self.extra: RawHeaders = []
        self.started = False

    def name(self, workflow: Workflow, state: WorkflowState | None) -> None:
        """Tell the client its session id, where it begins or may not know it; and how its key came to it."""
        if state is not None or self.headers.get(SESSION_ID) is None:
            self.extra += naming(workflow.record.session_id, state)

    def identify(self, body: bytes) -> None:
        """Note whom a refusal is to name: the requests in the body, where it can be read."""
        messages = messages_in(body)
        if wire_format.is_batch(body):
            self.batch = requests_in(messages)
        elif messages:
            self.id = messages[0].id

    def head(self, headers: RawHeaders) -> RawHeaders:
        """These headers, and what the answer has besides."""
        return [*headers, *self.extra, *self.cors]

    async def respond(self, status: int, headers: RawHeaders, body: bytes = b"") -> None:
        """A complete answer; a client that does not take it in `SEND_SECONDS` goes without."""
        self.started = True
        head = self.head(headers)
        if len(body) <= AT_ONCE_BYTES:
            await respond(self._send, status, head, body)
            return
        with anyio.move_on_after(SEND_SECONDS):
            await respond(self._send, status, head, body)

    async def start(self, status: int, headers: RawHeaders) -> None:
        """The head of an answer whose body comes in chunks."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": self.head(headers)})

    async def send_chunk(self, chunk: bytes) -> None:
        """A piece of the body, at once."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def finish(self) -> None:
        """The end of the body."""
        await self._send({"type": "http.response.body", "body": b""})


def check_json(headers: Mapping[str, str]) -> None:
    """Make sure that the body is declared to be JSON.

    Raises:
        HTTPRefusal: 415.
    """
    if headers.get("content-type") != JSON_TYPE and content_type(headers) != JSON_TYPE:
        raise HTTPRefusal(415, "content_type", "Content-Type must be application/json")


def requests_in(messages: Iterable[Envelope]) -> list[bytes]:
    """The ids of the requests among messages."""
    return [message.id for message in messages if message.kind == "request"]


def messages_in(body: bytes, limit: int = MAX_BODY_BYTES) -> list[Envelope]:
    """The messages in a body, one or a batch, where it can be read."""
    try:
        if wire_format.is_batch(body):
            return wire_format.parse_batch(body, limit=limit)
        return [wire_format.parse(body, limit=limit)]
    except TrunklineError:
        return []


Handle = Callable[[HTTPRequest], Awaitable[None]]


class HTTPEndpoint:
    """The ASGI application of one path of a server; `methods` say who answers what."""

    def __init__(self, config: EndpointConfig, methods: Mapping[str, Handle]) -> None:
        self._config = config
        self._pool = config.pool
        self._methods = methods
        self._allow = ", ".join((*methods, "OPTIONS"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        request = HTTPRequest(headers_of(scope), receive, send, scope)
        try:
            self._config.guard.check(request.headers)
            self._config.guard.check_page(request.headers)
            request.cors = self._config.guard.cors(request.headers)
            if scope["method"] == "OPTIONS":
                return await self._preflight(request)
            handle = self._methods.get(scope["method"])
            if handle is None:
                allow = (b"allow", self._allow.encode())
                raise HTTPRefusal(405, "method", f"use {' or '.join(self._methods)}", headers=[allow])
            request.principal = self._config.authenticate(request.headers)
            await handle(request)
        except ClientLeft:
            self._pool.statistics.count("refused", "client_left")
        except Elsewhere as elsewhere:
            elsewhere.identity = request.principal, request.headers.expires
            elsewhere.lay_down = self._leave_burden(request)
            scope[GRANT] = request.headers.grant
            raise
        except Exception as error:
            await refuse(self._config, request, error)
            error.__traceback__ = None  # whoever keeps it, as what was not opened does, keeps no request
        finally:
            self.lay_down(request)

    async def message(self, request: HTTPRequest) -> bytes:
        """The body of a POST that is a message, or a batch, once it is its turn.

        Raises:
            HTTPRefusal: 415, 406; or as `body`.
            Overloaded: too many of its user wait; or as `body`.
            Elsewhere: this worker drains.
        """
        check_json(request.headers)
        if not accepts(request.headers, JSON_TYPE, STREAM_TYPE):
            raise HTTPRefusal(406, "accept", "Accept must list application/json and text/event-stream")
        body = await self.body(request)
        if not self._config.admission.pass_at_once():  # more have come than are taken at once: users take turns
            try:
                await self._config.admission.wait(request.principal)
            except Overloaded as error:
                self._pool.statistics.count("refused", error.word)
                request.identify(body)
                raise
        await self.hand_on(request)
        return body

    async def body(self, request: HTTPRequest) -> bytes:
        """The whole body. A large one counts as far as it has come, until `lay_down`, or the end of its request.

        Raises:
            HTTPRefusal: 413, 408.
            Overloaded: there is too much of large messages.
            ClientLeft: it did not come to its end.
        """

        def note(size: int) -> None:
            if size > LARGE_BYTES:
                self._pool.burden.take_up(request.principal, self._config.server, size - request.burden)
                request.burden = size

        try:
            return await read_body(request.receive, request.headers.get("content-length"), note)
        except BodyTooLarge:
            raise HTTPRefusal(413, "body", f"the body is larger than {MAX_BODY_BYTES} bytes") from None
        except BodyTooSlow:
            raise HTTPRefusal(408, "slow_body", "the body took too long to come") from None

    def lay_down(self, request: HTTPRequest) -> None:
        """The body of a request counts no longer: it is let go of, or its calls count. Idempotent."""
        if request.burden:
            self._pool.burden.lay_down(request.principal, self._config.server, request.burden)
            request.burden = 0

    def _leave_burden(self, request: HTTPRequest) -> Callable[[], None]:
        """What lays down the body of a request for who keeps it: here it does not count any longer."""
        size, request.burden = request.burden, 0
        return partial(self._pool.burden.lay_down, request.principal, self._config.server, size)

    async def hand_on(self, request: HTTPRequest) -> None:
        """A drain may have begun while something was waited for: what was not begun before is another worker's (G8).

        Raises:
            Elsewhere: it is.
        """
        if self._pool.draining and not is_settled(request.scope):
            await self._pool.hand_on()

    @asynccontextmanager
    async def coming_back(self, request: HTTPRequest) -> AsyncIterator[None]:
        """Who asks for a stream that a drain has ended is to ask once more: who gets another status gives up (G8)."""
        try:
            yield
        except (Overloaded, UnknownSession, WorkflowEnded):
            if not self._pool.draining or request.started:
                raise
            await request.respond(200, EVENT_STREAM, event_stream.RECONNECT)

    async def _preflight(self, request: HTTPRequest) -> None:
        passed_on = (*self._config.forward_headers, *self._config.session_headers)
        granted = self._config.guard.preflight(request.headers, passed_on)
        request.cors = []
        await request.respond(204 if granted else 403, granted)


def refusal(config: EndpointConfig, request: HTTPRequest, error: Exception) -> Answer:
    """The answer that says what went wrong, which is counted."""
    answer = answer_to(error, request.id)
    if request.batch and answer.status == 200 and isinstance(error, TrunklineError):
        failures = [wire_format.failure(one, error) for one in request.batch]
        answer = answer._replace(body=b"[%b]" % b",".join(failures))
    if answer.status == 200 and request.scope["method"] == "GET":  # no message is there that it could answer
        answer = answer._replace(status=503)
    if answer.refused:
        config.pool.statistics.count("refused", answer.refused)
    if answer.status == 500:
        logger.error("a request failed", exc_info=error, extra={"server": config.server})
    return answer


async def refuse(config: EndpointConfig, request: HTTPRequest, error: Exception) -> None:
    """Say what went wrong, where no other answer has begun."""
    answer = refusal(config, request, error)
    if not request.started:
        await request.respond(answer.status, answer.headers, answer.body)


async def send_events(
    request: HTTPRequest, chunk: Callable[[], Awaitable[bytes | None]], statistics: Statistics
) -> bool:
    """Send the chunks of a stream until there are no more, the client leaves, or its identity ends (which is counted).

    An empty chunk is a keep-alive.

    False where the client took nothing for `SEND_SECONDS`.
    """
    with request.headers.held() as identity:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_at_disconnect, request.receive, tasks.cancel_scope)
            while (text := await chunk()) is not None:
                with anyio.move_on_after(SEND_SECONDS) as patience:
                    await request.send_chunk(text or event_stream.KEEP_ALIVE)
                if patience.cancelled_caught:
                    tasks.cancel_scope.cancel()
                    return False
            tasks.cancel_scope.cancel()
    if identity.cancelled_caught:
        statistics.count("refused", IDENTITY_ENDED)
    return True


async def _cancel_at_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    await until_disconnect(receive)
    scope.cancel()
