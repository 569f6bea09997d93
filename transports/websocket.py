"""WebSocket for clients: subprotocol `mcp`, one JSON-RPC message a text frame, both ways (rules W1-W4).

A socket that is cut can be taken up: the client says how many messages it received on it, or what it acknowledged
counts, by the pong that answers a ping sent after a message. Its calls go on meanwhile.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Final

import anyio

from ..mux.errors import Elsewhere
from ..mux.limits import MAX_BODY_BYTES
from ..mux.principal import Principal
from ..mux.record import WorkflowState
from .asgi import RawHeaders, Receive, RequestHeaders, Scope, Send, headers_of
from .endpoint import EndpointConfig
from .headers import SESSION_ID, WORKFLOW_STATE, asked
from .link import Link
from .status import Answer, HTTPRefusal, answer_to

logger = logging.getLogger(__name__)

SUBPROTOCOL: Final = "mcp"
IDLE_SECONDS: Final = 15.0
SEND_SECONDS: Final = 60.0
"""A client that takes nothing for this long is treated as gone; it may come back and resume."""
CLOSE_SECONDS: Final = 5.0
"""How long the last frame waits for a client that takes nothing."""

PING: Final = "trunkline.ping"
"""The ASGI extension by which the server lends its pings: a coroutine function that returns when the pong came."""

NORMAL, GOING_AWAY, BINARY, POLICY, TOO_BIG, INTERNAL, TRY_AGAIN = 1000, 1001, 1003, 1008, 1009, 1011, 1013
SESSION_ENDED: Final = 4404
"""The workflow is gone: begin anew with `initialize`. The reason is a fixed word."""
TAKEN_OVER: Final = 4409
"""A newer connection goes on with this wire."""
SLOW: Final = 4408
EXPIRED: Final = 4401
"""The identity of the upgrade has expired, or was revoked: come back with a fresh one."""

_CODES: Final = {
    "taken_over": TAKEN_OVER,
    "drained": GOING_AWAY,
    "overloaded": TRY_AGAIN,
    "no_handshake": POLICY,
}

Ping = Callable[[], Awaitable[None]]


class WebSocketEndpoint:
    """The ASGI application of one server's `/ws`."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._statistics = config.pool.statistics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        await receive()  # websocket.connect
        with ExitStack() as held:
            await self._serve(scope, receive, send, held)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, held: ExitStack) -> None:
        headers = headers_of(scope)
        try:
            principal = self._admit(scope, headers)
            held.enter_context(self._config.admission.place(principal, self._config.limits))
            link, state = await self._open(scope, headers, principal)
        except Elsewhere as elsewhere:
            elsewhere.identity = principal, headers.expires
            raise
        except Exception as error:
            await self._refuse(send, scope, error)
            return
        socket = _Socket(link, receive, send, scope.get("extensions", {}).get(PING), headers)
        try:
            await send(_accept(link, state))
            code, reason = await socket.run()
            await _close(send, code, reason)
        finally:
            link.close(goodbye=socket.said_goodbye)

    def _admit(self, scope: Scope, headers: Mapping[str, str]) -> Principal:
        self._config.guard.check(headers)
        principal = self._config.authenticate(headers)
        if SUBPROTOCOL not in scope.get("subprotocols", ()):
            raise HTTPRefusal(400, "subprotocol", "Sec-WebSocket-Protocol must list mcp")
        return principal

    async def _open(
        self, scope: Scope, headers: Mapping[str, str], principal: Principal
    ) -> tuple[Link, WorkflowState | None]:
        link = Link(self._config, principal, "websocket", pings=PING in scope.get("extensions", {}))
        return link, await link.open(asked(headers, scope.get("query_string", b"")))

    async def _refuse(self, send: Send, scope: Scope, error: Exception) -> None:
        """Answer the upgrade with a status; where the server cannot, with a close that the client sees as 403."""
        answer = answer_to(error)
        if answer.refused:
            self._statistics.count("refused", answer.refused)
        if answer.status == 500:
            logger.exception("an upgrade failed", extra={"server": self._config.server})
        if "websocket.http.response" in scope.get("extensions", {}):
            await _deny(send, answer)
        else:
            await send({"type": "websocket.close", "code": POLICY})


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application of a path where no socket is served."""
    await receive()  # websocket.connect
    if "websocket.http.response" in scope.get("extensions", {}):
        await _deny(send, answer_to(HTTPRefusal(404, "path", "no MCP server is served at this path")))
    else:
        await send({"type": "websocket.close", "code": POLICY})


class _Socket:
    """One connection: what comes is taken, what is due is sent, until one side ends it."""

    def __init__(self, link: Link, receive: Receive, send: Send, ping: Ping | None, headers: RequestHeaders) -> None:
        self._link = link
        self._receive = receive
        self._send = send
        self._ping = ping
        self._headers = headers
        self._sent = 0
        self._to_acknowledge = asyncio.Event()
        self._end: tuple[int, str] | None = None
        self.said_goodbye = False
        """True once the client has closed it in order."""

    async def run(self) -> tuple[int, str]:
        """Serve until the end; the code and the reason to close with."""
        with self._headers.held():
            async with anyio.create_task_group() as tasks:
                for part in (self._take, self._give, *([self._acknowledge] if self._ping is not None else [])):
                    tasks.start_soon(self._until_end, part, tasks.cancel_scope)
        return self._end or (EXPIRED, "the identity has ended")

    async def _until_end(self, part: Callable[[], Awaitable[tuple[int, str]]], scope: anyio.CancelScope) -> None:
        try:
            end = await part()
        except OSError:  # the client has gone
            end = NORMAL, ""
        self._end = self._end or end
        scope.cancel()

    async def _take(self) -> tuple[int, str]:
        while True:
            event = await self._receive()
            if event["type"] == "websocket.disconnect":
                self.said_goodbye = event.get("code") in (NORMAL, GOING_AWAY)
                return NORMAL, ""
            text = event.get("text")
            if text is None:
                return BINARY, "text frames only"
            message = text.encode()
            if len(message) > MAX_BODY_BYTES:
                return TOO_BIG, f"a message may have {MAX_BODY_BYTES} bytes"
            await self._link.take(message, self._headers)

    async def _give(self) -> tuple[int, str]:
        link, loop = self._link, asyncio.get_running_loop()
        with anyio.CancelScope() as patience:
            while True:
                due = await link.next(IDLE_SECONDS)
                if due is None:
                    return _code(link.end_reason), link.end_reason
                for one in due:
                    if one.message:  # an event that only primes a stream has none
                        timer = loop.call_later(SEND_SECONDS, patience.cancel)
                        try:
                            await self._send({"type": "websocket.send", "text": one.message.decode()})
                        finally:
                            timer.cancel()
                    self._sent = max(self._sent, one.position)
                self._to_acknowledge.set()
        return SLOW, "nothing was read for too long"

    async def _acknowledge(self) -> tuple[int, str]:
        """A ping after what was sent: its pong says that the client has it. The first pong shows that it is there."""
        assert self._ping is not None
        if not self._link.is_met:
            await self._ping()
            self._link.meet()
        while True:
            await self._to_acknowledge.wait()
            self._to_acknowledge.clear()
            position = self._sent
            await self._ping()
            self._link.acknowledge(position)


def _accept(link: Link, state: WorkflowState | None) -> dict[str, object]:
    headers: RawHeaders = [(SESSION_ID.encode(), link.session_id.encode())]
    if state is not None:
        headers.append((WORKFLOW_STATE.encode(), state.encode()))
    return {"type": "websocket.accept", "subprotocol": SUBPROTOCOL, "headers": headers}


async def _deny(send: Send, answer: Answer) -> None:
    head = {"type": "websocket.http.response.start", "status": answer.status, "headers": answer.headers}
    await send(head)
    await send({"type": "websocket.http.response.body", "body": answer.body})


async def _close(send: Send, code: int, reason: str) -> None:
    # The client may have closed it, or take nothing: what is left to send then goes before.
    with suppress(OSError, RuntimeError), anyio.move_on_after(CLOSE_SECONDS):
        await send({"type": "websocket.close", "code": code, "reason": reason})


def _code(reason: str) -> int:
    return _CODES.get(reason, SESSION_ENDED)
