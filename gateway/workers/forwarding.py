"""Requests that another worker serves: an ASGI application here, a conversation, and the same application there.

Whatever the request is (a call, a stream, a WebSocket), it is handed on whole, before anything of it was done, to the
one worker that holds its workflow. There it is executed once; what that worker answers goes to the client as it comes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import anyio

from ...mux import envelope as wire_format
from ...mux import modern
from ...mux.directory import Worker
from ...mux.errors import DirectoryUnavailable, Elsewhere, Everywhere, Overloaded, SessionLost, TrunklineError
from ...mux.membership import BEAT_SECONDS, Membership
from ...mux.statistics import Statistics
from ...transports import event_stream
from ...transports.asgi import (
    EVENT_STREAM,
    GRANT,
    HOPS,
    IDENTITY,
    JSON,
    UNBOUND,
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    read_fields,
    respond,
)
from ...transports.http_endpoint import messages_in, requests_in
from ...transports.status import Answer, answer_to
from ...transports.websocket import PING, deny
from .cancelling import Inquiry
from .conversation import MAX_FRAME_BYTES, Broken, Conversation, Frame, Open, Unreachable
from .openings import opening

logger = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 2.5
"""How long a request waits for a workflow whose worker has died to be taken over."""

RETRY_SECONDS: Final = 0.1
MAX_HOPS: Final = 3
SERVICE_RESTART: Final = 1012

GONE: Final = Overloaded("the worker that holds this session has gone; try again", limit="worker")
BROKEN: Final = SessionLost("the worker that served this call has gone", executed="unknown")


class Forwarder:
    """The ASGI application of a worker: `app`, and where that says `Elsewhere`, the worker that it names."""

    def __init__(self, app: ASGIApp, membership: Membership, open_conversation: Open, statistics: Statistics) -> None:
        self._app = app
        self._membership = membership
        self._open = open_conversation
        self._inquiry = Inquiry(app, membership, open_conversation)
        self._statistics = statistics
        self._calls: set[Conversation] = set()
        """Requests that are handed on and have an end of their own."""
        self._has_ended = anyio.Event()
        self._streams: set[Conversation] = set()
        """Those that last until one side ends them."""
        self._is_draining = self._is_leaving = False

    def drain(self) -> None:
        """End the streams that were handed on, to be resumed; requests go on, and what comes is handed on."""
        self._is_draining = True
        _close(self._streams)

    async def leave(self, timeout: float) -> bool:
        """End all streams, also those that still come, and wait for requests, at most `timeout` seconds.

        What takes longer is cut, and its clients are told that it may have been executed (-31002). True if nothing was.
        """
        self._is_leaving = True
        _close(self._streams)
        with anyio.move_on_after(timeout):
            while self._calls:
                await self._has_ended.wait()
        is_complete = not self._calls
        for conversation in tuple(self._calls):
            conversation.cut()
        return is_complete

    @property
    def is_relaying(self) -> bool:
        """True while something that was handed on, and has an end of its own, is under way."""
        return bool(self._calls)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, here or elsewhere."""
        tape = Tape(receive, send)
        try:
            await self._serve(scope, tape)
        finally:
            tape.lay_down()

    async def _serve(self, scope: Scope, tape: Tape) -> None:
        until = anyio.current_time() + PATIENCE_SECONDS
        while True:
            tape.lay_down()  # it counts where it is read again
            tape.rewind()
            try:
                return await self._app(scope, tape.receive, tape.send)
            except Elsewhere as elsewhere:
                found = elsewhere.with_traceback(None)  # that keeps this frame, and with it itself and the body
                tape.weight = found.lay_down
            if found.identity is not None:
                scope[IDENTITY] = found.identity  # a ticket is taken once, however often this is asked for
            try:
                if isinstance(found, Everywhere):
                    found, scope = await self._inquiry.find(found, scope, tape.body)
                    self._statistics.count("forwards", "asked_all")
                tape.rewind()
                if found.worker == self._membership.worker.id:
                    continue
                if await self._forward(found, scope, tape):
                    return None
                if anyio.current_time() > until:
                    raise Overloaded("the worker that holds this session does not answer; try again", limit="worker")
            except TrunklineError as error:
                self._statistics.count("forwards", "refused")
                return await _refuse(error, scope, tape)
            await anyio.sleep(RETRY_SECONDS)

    async def _lives(self, id: str) -> bool:
        """Whether a worker is not taken for dead, as far as anybody can tell."""
        try:
            return await self._membership.find(id) is not None
        except DirectoryUnavailable:
            return True

    async def _doubt(self, worker: Worker) -> None:
        """A worker did not answer: wait until it is known to be dead, or for so long that it may answer again."""
        self._membership.doubt(worker.id)
        with anyio.move_on_after(BEAT_SECONDS):
            while await self._lives(worker.id):  # noqa: ASYNC110 - nobody tells of it
                await anyio.sleep(RETRY_SECONDS)

    async def _forward(self, elsewhere: Elsewhere, scope: Scope, tape: Tape) -> bool:
        """Hand a request on; False where that surely had no effect, and who holds its workflow must be asked again.

        Raises:
            TrunklineError: it cannot be handed on.
        """
        if scope.get(HOPS, 0) >= MAX_HOPS:
            raise Overloaded("the session moves between workers; try again", limit="worker")
        worker = await self._membership.find(elsewhere.worker)
        if worker is None:
            return False
        try:
            conversation = await self._open(worker)
        except Unreachable:
            await self._doubt(worker)
            return False
        try:
            with self._noted(conversation, scope):
                begin = opening(scope, elsewhere.identity)
                await _converse(conversation, begin, scope, tape, lambda: self._lives(worker.id))
        except Unreachable:
            await self._doubt(worker)
            return False
        except Broken:
            return await self._break(worker, scope, tape)
        finally:
            conversation.close()
        self._statistics.count("forwards", "done")
        return True

    async def _break(self, worker: Worker, scope: Scope, tape: Tape) -> bool:
        """The conversation did not come to its end; False where the request may be tried again."""
        if self._is_draining and _is_repeatable(scope):
            self._statistics.count("forwards", "drained")
        else:
            self._membership.doubt(worker.id)
            if not tape.has_begun and (_is_repeatable(scope) or _is_answer(tape.body)):
                self._statistics.count("forwards", "retried")
                return False
            self._statistics.count("forwards", "broken")
        await _tell_broken(scope, tape)
        return True

    @contextmanager
    def _noted(self, conversation: Conversation, scope: Scope) -> Iterator[None]:
        """A request is under way to another worker."""
        is_stream = scope["type"] == "websocket" or scope["method"] == "GET" or _subscribes(scope)
        under_way = self._streams if is_stream else self._calls
        under_way.add(conversation)
        if is_stream and self._is_leaving:
            conversation.close()
        try:
            yield
        finally:
            under_way.discard(conversation)
            self._has_ended.set()
            self._has_ended = anyio.Event()


def _close(conversations: Iterable[Conversation]) -> None:
    for conversation in tuple(conversations):
        conversation.close()


class Tape:
    """What a client sends, kept until it is answered something, so that it can be played again."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._heard: list[Message] = []
        self._due: deque[Message] = deque()
        self.has_begun = False
        """True once the client was answered something."""
        self.is_complete = False
        """True once it was answered all that there is."""
        self.weight: Callable[[], None] | None = None
        """Lays down what the body counts for as long as it is kept."""
        self.unanswered: dict[bytes, None] = {}
        """The ids of requests in its body whose answers have not passed by, where they come as a stream."""
        self._parser: event_stream.EventParser | None = None

    async def receive(self) -> Message:
        """The next event of the client."""
        if self._due:
            return self._due.popleft()
        message = await self._receive()
        if not self.has_begun:
            self._heard.append(message)
        return message

    async def send(self, message: Message) -> None:
        """An event for the client."""
        self.has_begun = True
        self._heard.clear()
        self.lay_down()
        is_last = message["type"].endswith("response.body") and not message.get("more_body", False)
        self.is_complete = is_last or message["type"] == "websocket.close"
        await self._send(message)

    async def relay(self, message: Message) -> None:
        """An event for the client that comes from another worker."""
        if message["type"] == "http.response.start":
            if any(value.startswith(b"text/event-stream") for _, value in message["headers"]):
                self.unanswered = dict.fromkeys(requests_in(messages_in(self.body, MAX_FRAME_BYTES)))
                self._parser = event_stream.EventParser(limit=MAX_FRAME_BYTES)
        elif self.unanswered and self._parser is not None and message["type"] == "http.response.body":
            for event in self._parser.feed(message.get("body", b"")):
                for answer in messages_in(event.data, MAX_FRAME_BYTES):
                    if answer.kind == "response":
                        self.unanswered.pop(answer.id, None)
        await self.send(message)

    def lay_down(self) -> None:
        """What was heard counts here no longer. Idempotent."""
        if self.weight is not None:
            self.weight()
            self.weight = None

    def rewind(self) -> None:
        """Play again what the client has sent."""
        self._due = deque(self._heard)

    @property
    def body(self) -> bytes:
        """What is known of a request's body."""
        return b"".join(message.get("body", b"") for message in self._heard if message["type"] == "http.request")


async def _converse(
    conversation: Conversation,
    opening: dict[str, Any],
    scope: Scope,
    tape: Tape,
    lives: Callable[[], Awaitable[bool]],
) -> None:
    """The side with the client, until the other one has done, or is taken for dead.

    Where the credential of the request is withdrawn here, the other side is told.
    """
    await conversation.send(Frame("open", opening))
    broken: Broken | None = None
    async with anyio.create_task_group() as tasks:
        withdrawn = partial(tasks.start_soon, _tell, conversation, Frame("withdrawn"))
        tasks.start_soon(_hand_on, conversation, tape)
        tasks.start_soon(_break_off, conversation, lives)
        try:
            with scope.get(GRANT, UNBOUND).watched(withdrawn):
                while (frame := await conversation.receive()).kind != "end":
                    if frame.kind == "event":
                        await tape.relay(frame.payload)
                    elif frame.kind == "ping":
                        tasks.start_soon(_ping, conversation, scope)
        except Broken as error:  # kept out of the task group, which would wrap it
            broken = error if not tape.is_complete else None
        except OSError:
            logger.debug("the client of a forwarded request has gone")
        tasks.cancel_scope.cancel()
    if broken is not None:
        raise broken


async def _break_off(conversation: Conversation, lives: Callable[[], Awaitable[bool]]) -> None:
    """End it when the other worker is taken for dead: one that is stopped keeps its sockets open (guarantee G7)."""
    while True:
        await anyio.sleep(BEAT_SECONDS)
        if not await lives():
            conversation.cut()


async def _hand_on(conversation: Conversation, tape: Tape) -> None:
    with suppress(Broken):  # it is found where the answer is awaited
        while not (await _hand_on_next(conversation, tape)).endswith(".disconnect"):
            pass


async def _hand_on_next(conversation: Conversation, tape: Tape) -> str:
    """Hand on one event; its type. Nobody keeps it who waits for the next: who is cancelled waits for the collector."""
    message = await tape.receive()
    await conversation.send(Frame("event", message))
    kind: str = message["type"]
    return kind


async def _ping(conversation: Conversation, scope: Scope) -> None:
    with suppress(OSError):
        await scope["extensions"][PING]()
        await _tell(conversation, Frame("pong"))


async def _tell(conversation: Conversation, frame: Frame) -> None:
    with suppress(Broken):  # it is found where the answer is awaited
        await conversation.send(frame)


def _is_repeatable(scope: Scope) -> bool:
    """Whether the request may be sent again although it may have been served: not if it carries messages (G6).

    Only one that does nothing but listen may.
    """
    return bool(scope["type"] == "websocket" or scope["method"] != "POST" or _subscribes(scope))


def _is_answer(body: bytes) -> bool:
    """Whether a client only answers what a server asked: of several answers one counts, so it may be sent again."""
    messages = messages_in(body, MAX_FRAME_BYTES)
    return bool(messages) and all(message.kind == "response" for message in messages)


def _subscribes(scope: Scope) -> bool:
    """Whether a request is for a stream of subscriptions: in its era, what its headers say is what it is (rule H2)."""
    if scope["type"] != "http":
        return False
    headers = read_fields(scope["headers"])
    return headers.get(modern.VERSION_HEADER) in modern.REVISIONS and headers.get(modern.METHOD_HEADER) == modern.LISTEN


async def _tell_broken(scope: Scope, tape: Tape) -> None:
    """The worker that served the request died over it."""
    if scope["type"] == "websocket":
        await _close_socket(answer_to(GONE), "the worker has gone", scope, tape)
    elif tape.has_begun:
        # A stream: what its client does not come back for is told here. Subscriptions end without a word (rule L28).
        unanswered = () if _subscribes(scope) else tape.unanswered
        failures = [event_stream.encode(wire_format.failure(request, BROKEN)) for request in unanswered]
        await tape.send({"type": "http.response.body", "body": b"".join(failures)})
    elif scope["method"] == "GET":
        await respond(tape.send, 200, EVENT_STREAM, event_stream.RECONNECT)
    else:
        await _answer_broken(tape, 502 if scope["path"].endswith("/message") else 200)


async def _answer_broken(tape: Tape, status: int) -> None:
    """A client of HTTP+SSE reads no answer here but its status: what it waits for would come on its stream."""
    answers = [wire_format.failure(request, BROKEN) for request in requests_in(messages_in(tape.body, MAX_FRAME_BYTES))]
    if answers:
        is_batch = wire_format.is_batch(tape.body)
        await respond(tape.send, status, [JSON], b"[%b]" % b",".join(answers) if is_batch else answers[0])
    else:
        await respond(tape.send, 202, [])


async def _close_socket(answer: Answer, reason: str, scope: Scope, tape: Tape) -> None:
    """Close a WebSocket; an upgrade that was not answered yet gets a status: who is told nothing takes it for 403."""
    if tape.has_begun:
        await tape.send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": reason})
    else:
        await deny(scope, tape.send, answer)


async def _refuse(error: TrunklineError, scope: Scope, tape: Tape) -> None:
    answer = answer_to(error)
    if scope["type"] == "websocket":
        await _close_socket(answer, "the worker does not answer", scope, tape)
    elif scope["method"] == "GET":
        await respond(tape.send, 200, EVENT_STREAM, event_stream.RECONNECT)
    else:
        await respond(tape.send, answer.status, answer.headers, answer.body)
