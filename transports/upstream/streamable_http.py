"""Streamable HTTP to a server: each request is a POST of its own, whose stream belongs to that request (rule R1.1).

The session lives as long as the context of `connect`. A POST whose stream breaks is taken up again by
`Last-Event-ID` if the server gave event ids, and is never sent a second time (rules T12, T13).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Final

import anyio

from ...mux.errors import InvalidRequest, SessionLost, TrunklineError, UpstreamFault
from ...mux.ports import NONE, Headers, Receiver, SendKind
from ...mux.request import Request
from ...mux.routing import PRIMING
from ..media import JSON_TYPE, STREAM_TYPE
from ..patience import Patience
from ..unfinished import Unfinished
from .answers import Events, Unasked, nothing
from .http import Answer, HeaderBlock
from .http_call import HTTPCall
from .http_connector import VERSION_HEADER_SINCE, HTTPConnector
from .http_delivery import Deliveries, acknowledged, announce
from .http_resumption import resume
from .loss import Loss

logger = logging.getLogger(__name__)

CLOSE_SECONDS: Final = 5.0
MAX_SESSION_ID: Final = 1024


class StreamableHTTPConnector(HTTPConnector):
    """Opens sessions with one server by Streamable HTTP. Implements `AdoptingConnector`, `RotatingConnector`."""

    always = MappingProxyType({"Accept": f"{JSON_TYPE}, {STREAM_TYPE}"})

    def connect(self, receiver: Receiver, headers: Headers, *, listen: bool) -> HTTPWire:
        """See `Connector.connect`.

        Raises:
            InvalidRequest: headers that cannot be sent.
        """
        return HTTPWire(self, receiver, headers, listen=listen)

    def adopt(self, receiver: Receiver, headers: Headers, session: str, revision: str, *, listen: bool) -> HTTPWire:
        """See `AdoptingConnector.adopt`.

        Raises:
            InvalidRequest: headers that cannot be sent.
        """
        return HTTPWire(self, receiver, headers, listen=listen, adopted=(session, revision))


class _Traffic:
    """What is under way on one session."""

    __slots__ = ("deliveries", "exchanges", "loss", "running")

    def __init__(self) -> None:
        self.running: dict[asyncio.Task[None], None] = {}
        """Tasks that take up streams which broke."""
        self.exchanges: dict[Request, Callable[[], object]] = {}
        """How to cut the exchange of each request."""
        self.deliveries = Deliveries()
        self.loss = Loss()

    @property
    def is_empty(self) -> bool:
        """True where nothing is under way, nor lost."""
        return self.loss.is_blank and not (self.running or self.exchanges or self.deliveries)


class HTTPWire:
    """One session, for the length of its context. Implements `MovableWire`.

    There are many, and most of them idle: nothing is kept before it is needed, nor once it rests, no task and no stack
    of contexts.
    """

    __slots__ = (
        "_blocks",
        "_connector",
        "_fixed",
        "_is_released",
        "_listen",
        "_offers_stream",
        "_revision",
        "_session_id",
        "_unasked",
        "_under_way",
        "is_established",
        "receiver",
    )

    def __init__(
        self,
        connector: StreamableHTTPConnector,
        receiver: Receiver,
        headers: Headers,
        *,
        listen: bool,
        adopted: tuple[str, str] | None = None,
    ) -> None:
        self._connector = connector
        self.receiver = receiver
        self._fixed = headers
        self._blocks: tuple[HeaderBlock, HeaderBlock] | None = None
        """The connector's headers, and what was made of them for this session; None where it has to be made anew."""
        self._session_id: str | None = None
        self._revision = ""
        """What the session speaks, once that is known."""
        self._listen = listen
        self._offers_stream = True
        """Whether the server has a GET stream, as far as that is known."""
        self._unasked: Unasked | None = None
        """The GET stream, once there was one."""
        self._under_way: _Traffic | None = None
        self.is_established = False
        self._is_released = False
        if adopted is not None:
            session, self._revision = adopted
            self._take_session(session[1:] or None)
        try:
            self._block()
        except ValueError as error:
            raise InvalidRequest(str(error)) from error

    async def __aenter__(self) -> HTTPWire:
        """Begin, or go on with the session that is adopted."""
        if self._revision:
            self._begin_calls()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the session at the server, in order and in bounded time; best effort (rule L5)."""
        try:
            if self._session_id is not None and self._traffic.loss.cause is None and not self._is_released:
                with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                    self._connector.count("delete")
                    await acknowledged(partial(self._connector.http.send, "DELETE", self._block(), b""))
        except TrunklineError as error:
            logger.info("the server did not take the DELETE: %s", error.message, extra=self._about)
        finally:
            await self._cut()

    # Wire

    def send(
        self, text: bytes, *, kind: SendKind = "notification", request: Request | None = None, headers: Headers = NONE
    ) -> None:
        """See `Wire.send`."""
        try:
            block = self._block().with_(headers) if headers else self._block()
        except ValueError as error:
            if request is not None:
                refusal = InvalidRequest(str(error))
                asyncio.get_running_loop().call_soon(self.receiver.failed, request, refusal)
            return
        traffic = self._traffic
        if request is None:
            send = partial(self._connector.http.send, "POST", block, text)
            self._connector.deliver(traffic.deliveries, kind, len(text), send, partial(self._delivered, kind))
        elif traffic.loss.cause is not None:
            traffic.loss.refused.append(request)
        elif request.token and self._unasked is not None and self._unasked.is_coming:
            traffic.exchanges[request] = nothing
            request.is_held = True
            self._unasked.when_known(partial(self._send_held, text, request, headers))
        else:
            traffic.loss.unanswered[request] = None
            self._connector.count("call" if self.is_established else "initialize")
            answer, fence = HTTPCall(self, request), request.is_wanted  # what was cancelled meanwhile is not sent
            traffic.exchanges[request] = self._connector.http.send("POST", block, text, answer, fence=fence)

    def _send_held(self, text: bytes, request: Request, headers: Headers) -> None:
        """Send what wants progress, now that it would be heard.

        Progress belongs on the stream of the POST (Transports, "Listening for Messages from the Server"). But servers
        of the Python SDK up to 1.24 at least (`report_progress`) send it on the GET stream, and drop it where nobody
        listens there.
        """
        if self._traffic.exchanges.pop(request, None) is None:  # given up meanwhile
            return
        request.is_held = False
        if request.state == "pending":
            self.send(text, request=request, headers=headers)
        else:
            self.is_over(request, SessionLost("it was cancelled before it was sent", executed="no"))

    def abandon(self, request: Request) -> None:
        """See `Wire.abandon`."""
        if request in self._traffic.exchanges:
            self.cut(request)
            self.is_over(request)

    async def establish(self, revision: str, initialized: bytes) -> None:
        """See `Wire.establish`."""
        self._revision, self._blocks = revision, None
        self._connector.count("initialized")
        await announce(partial(self._connector.http.send, "POST", self._block(), initialized))
        self._begin_calls()

    # MovableWire

    @property
    def session(self) -> str:
        """See `MovableWire.session`: the server's id after a colon, which stands alone where it gave none."""
        return f":{self._session_id or ''}"

    def release(self) -> None:
        """See `MovableWire.release`."""
        self._is_released = True

    def listen(self) -> None:
        """See `MovableWire.listen`."""
        self._listen = True
        if not self._offers_stream:
            return
        if self._unasked is None:
            self._unasked = Unasked(self._ask_for_stream, self._hear, self._faulted, self._have_none, self.unfinished)
        self._unasked.open()

    def rest(self) -> None:
        """See `MovableWire.rest`."""
        self._listen = False
        if self._unasked is not None:
            self._unasked.close()
            if self._unasked.is_blank:
                self._unasked = None
        self._trim()

    def _begin_calls(self) -> None:
        self.is_established = True
        if self._listen:
            self.listen()
        self._trim()

    def _trim(self) -> None:
        """Keep nothing that the next request can make anew: a table that was once used keeps its room."""
        self._blocks = None
        if self._under_way is not None and self._under_way.is_empty:
            self._under_way = None

    async def _cut(self) -> None:
        """Cut all that is under way."""
        traffic = self._traffic
        traffic.loss.close()
        for cut in tuple(traffic.exchanges.values()):
            cut()
        traffic.deliveries.cut()
        traffic.exchanges.clear()
        if self._unasked is not None:
            self._unasked.close()
        for task in traffic.running:
            task.cancel()
        if traffic.running:
            await asyncio.wait(tuple(traffic.running))

    # What becomes of a request, as its answer tells.

    @property
    def unfinished(self) -> Unfinished:
        """What answers count to before they are complete."""
        return self._connector.unfinished

    @property
    def lingering(self) -> Patience:
        """Streams that have brought their answer."""
        return self._connector.lingering

    def begins(self, request: Request, status: int, headers: Headers) -> bool:
        """The server begins to answer this request; False where it has forgotten the session instead.

        Raises:
            UpstreamFault: it gave a session id that is none.
        """
        self._traffic.loss.settle(request)
        if not self.is_established:
            self._opens(status, headers)
        elif status == 404 and self.has_session:
            self.forgot(request)
            return False
        return True

    @property
    def has_session(self) -> bool:
        """True where requests name a session, which the server may forget."""
        return self.is_established and self._session_id is not None

    def forgot(self, request: Request) -> None:
        """The server no longer knows the session, and did not run this request."""
        self._traffic.exchanges.pop(request, nothing)()
        self._lose(request)

    def cut(self, request: Request) -> None:
        """Nothing more is needed of the exchange of this request. Does nothing once it is over."""
        self._traffic.exchanges.get(request, nothing)()

    def is_over(self, request: Request, error: TrunklineError | None = None) -> None:
        """The exchange of this request is over, for this reason where its answer did not come."""
        traffic = self._traffic
        traffic.exchanges.pop(request, None)
        traffic.loss.settle(request)
        if error is not None:
            self.receiver.failed(request, error)

    def take_up(self, request: Request, events: Events) -> None:
        """The stream of this request broke before its answer."""
        task = asyncio.get_running_loop().create_task(self._take_up(request, events))
        self._traffic.running[task] = None
        self._traffic.exchanges[request] = task.cancel
        task.add_done_callback(self._taken_up)

    # Inside.

    def _block(self) -> HeaderBlock:
        """What goes with every request: the connector's headers as they are now, what is fixed, what was agreed on.

        Raises:
            ValueError: what is fixed cannot be sent.
        """
        base, made = self._connector.headers, self._blocks
        if made is None or made[0] is not base:
            own = dict(self._fixed)
            if self._session_id is not None:
                own["Mcp-Session-Id"] = self._session_id
            if self._revision >= VERSION_HEADER_SINCE:
                own["MCP-Protocol-Version"] = self._revision
            made = self._blocks = base, base.with_(own)
        return made[1]

    @property
    def _traffic(self) -> _Traffic:
        """What is under way now."""
        if self._under_way is None:
            self._under_way = _Traffic()
        return self._under_way

    @property
    def _about(self) -> dict[str, str]:
        return {"server": self._connector.server}

    def _taken_up(self, task: asyncio.Task[None]) -> None:
        self._traffic.running.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a stream could not be taken up", exc_info=task.exception(), extra=self._about)
            self.receiver.lost(UpstreamFault("a stream could not be taken up"))

    def _delivered(self, kind: SendKind, over: asyncio.Future[int]) -> None:
        if over.cancelled():
            logger.info("a %s was not acknowledged", kind, extra=self._about)
        elif over.exception() is not None:
            self._connector.count_dropped()
            logger.info("a %s did not reach the server", kind, extra=self._about)
        elif over.result() == 404 and self._session_id is not None:
            self._lose()
        elif over.result() >= 300:
            logger.warning("the server answered a %s with HTTP %d", kind, over.result(), extra=self._about)

    def _opens(self, status: int, headers: Headers) -> None:
        """The server begins to answer the `initialize`. Raises as `begins`."""
        self._take_session(headers.get("mcp-session-id"))

    def _take_session(self, session_id: str | None) -> None:
        if session_id is None:
            return
        if len(session_id) > MAX_SESSION_ID or not all("\x21" <= character <= "\x7e" for character in session_id):
            raise UpstreamFault("the server gave a session id that is not visible ASCII")
        self._session_id, self._blocks = session_id, None

    async def _take_up(self, request: Request, events: Events) -> None:
        def hand_on(text: bytes) -> None:
            self.receiver.received(text, request)

        may_end = self._revision >= PRIMING
        self.is_over(request, await resume(request, events, self._ask_for_stream, hand_on, may_end=may_end))

    def _have_none(self) -> None:
        """The server offers no stream: nothing of it is kept."""
        self._offers_stream = False
        self._unasked = None

    def _hear(self, text: bytes) -> None:
        self.receiver.received(text, None)

    def _faulted(self, fault: UpstreamFault) -> None:
        logger.warning("the GET stream was given up: %s", fault.message, extra=self._about)
        self._connector.count_fault()

    def _ask_for_stream(self, last_id: str | None, answer: Answer) -> Callable[[], None]:
        """GET: what belongs to no request, or what followed this event. What is returned cuts it.

        Raises:
            UpstreamFault: the event id cannot be sent back.
        """
        self._connector.count("get")
        asked = {"Accept": STREAM_TYPE}
        if last_id is not None:
            asked["Last-Event-ID"] = last_id.encode().decode("latin-1")  # in UTF-8, as an EventSource sends it
        try:
            headers = self._block().with_(asked)
        except ValueError as error:
            raise UpstreamFault(f"the server gave an event id that cannot be sent back: {error}") from None
        return self._connector.http.send("GET", headers, b"", answer)

    def _lose(self, refused: Request | None = None) -> None:
        """The server no longer knows the session, and did not run this request."""
        cause = SessionLost("the server no longer knows the session", executed="unknown")
        self._traffic.loss.come(cause, self._tell_lost, refused)
        if self._unasked is not None:
            self._unasked.let_go()

    def _tell_lost(self, cause: SessionLost, refused: list[Request]) -> None:
        self.receiver.lost(cause, refused)
