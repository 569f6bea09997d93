"""The side that serves: what another worker hands on, as a conversation, to the ASGI application here."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from ...transports.asgi import GRANT, ASGIApp, Grant, Message
from .conversation import Broken, Conversation, Frame, SocketConversation
from .openings import scope_of

logger = logging.getLogger(__name__)

GRACE_SECONDS: Final = 2.0
"""How long what is under way may take to reach the other side when this worker ends."""

Begin = Callable[[Conversation], None]
"""Takes a conversation that another worker has begun."""


@asynccontextmanager
async def listening(address: str, begin: Begin) -> AsyncIterator[None]:
    """Take what other workers hand on by this Unix socket, for the length of the context.

    Raises:
        OSError: the socket cannot be made.
    """

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # In a task: where sniffio is installed, anyio does not know the event loop in a callback of a transport.
        begin(SocketConversation(reader, writer))

    server = await asyncio.start_unix_server(accept, address)
    try:
        yield
    finally:
        server.close()


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[Begin]:
    """Serve what other workers hand on, for the length of the context: each conversation that it is called with.

    Those that are under way may take `GRACE_SECONDS` longer.
    """

    async def guarded(conversation: Conversation) -> None:
        try:
            await serve(conversation, app)
        except Exception:  # a defect in one must not end the others
            logger.exception("a forwarded request failed")

    async with anyio.create_task_group() as tasks:

        def begin(conversation: Conversation) -> None:
            tasks.start_soon(guarded, conversation)

        yield begin
        tasks.cancel_scope.deadline = anyio.current_time() + GRACE_SECONDS


async def serve(conversation: Conversation, app: ASGIApp) -> None:
    """Serve what another worker hands on, until one side ends it."""
    try:
        opening = await conversation.receive()
        if opening.kind != "open":
            raise Broken("a conversation begins with its scope")
        async with anyio.create_task_group() as tasks:
            served = _Served(conversation, opening.payload)
            tasks.start_soon(served.hear)
            await app(served.scope, served.receive, served.send)
            await served.end()
            tasks.cancel_scope.cancel()
    except Broken:
        logger.info("a worker that forwarded a request has gone")
    finally:
        conversation.close()


class _Served:
    """The side that serves: ASGI's `receive` and `send` as frames."""

    def __init__(self, conversation: Conversation, opening: dict[str, Any]) -> None:
        self._conversation = conversation
        self.scope = scope_of(opening, self._ping)
        self._grant = self.scope[GRANT] = Grant()
        self._is_websocket = self.scope["type"] == "websocket"
        self._events: asyncio.Queue[Message] = asyncio.Queue(1)
        self._pongs: deque[asyncio.Future[None]] = deque()
        self._is_broken = False

    async def hear(self) -> None:
        """Take what the other side sends, until it is gone."""
        try:
            while True:
                await self._hear_next()
        except Broken:
            self._is_broken = True
            gone = {"type": "websocket.disconnect", "code": 1006} if self._is_websocket else {"type": "http.disconnect"}
            for pong in self._pongs:
                if not pong.done():
                    pong.set_exception(ConnectionResetError("the client has gone"))
            self._pongs.clear()
            while True:
                await self._events.put(gone)

    async def _hear_next(self) -> None:
        # On its own: who waits for the next one, and is cancelled, keeps nothing of this one for the garbage collector.
        frame = await self._conversation.receive()
        if frame.kind == "event":
            await self._events.put(frame.payload)
        elif frame.kind == "pong" and self._pongs:
            pong = self._pongs.popleft()
            if not pong.done():  # somebody still waits for it
                pong.set_result(None)
        elif frame.kind == "withdrawn":
            self._grant.withdraw()

    async def receive(self) -> Message:
        """See ASGI."""
        return await self._events.get()

    async def send(self, message: Message) -> None:
        """See ASGI; what is sent to a client that has gone is dropped."""
        await self._say(Frame("event", message))

    async def end(self) -> None:
        """Say that this was all, and wait for the other side to leave, at most `GRACE_SECONDS`.

        What it still says is taken: one that speaks to a closed socket loses the answer that it has not read.
        """
        await self._say(Frame("end"))
        if self._is_broken:
            logger.info("a worker that forwarded a request has gone")
        with anyio.move_on_after(GRACE_SECONDS):
            while not self._is_broken:
                await self._events.get()

    async def _say(self, frame: Frame) -> None:
        if self._is_broken:
            return
        try:
            await self._conversation.send(frame)
        except Broken:
            self._is_broken = True

    async def _ping(self) -> None:
        if self._is_broken:
            raise ConnectionResetError("the client has gone")
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        try:
            await self._conversation.send(Frame("ping"))
            await pong
        except Broken as error:
            raise ConnectionResetError("the client has gone") from error
        finally:
            pong.cancel()  # nobody waits for it any longer
