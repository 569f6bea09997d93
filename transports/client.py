"""A WebSocket transport for the client of the MCP SDK 2.x, whose session outlives its connections.

    async with Client(websocket_client("ws://127.0.0.1:8920/servers/demo/ws"), mode="legacy") as client:
        await client.call_tool("counter")

A connection that is cut is taken up by another: with a gateway that names its sessions, nothing is missed and nothing
is done twice (guarantees G5 and G6; `client_ledger` says how). A server that names none, as those of the SDK's 1.x
line, is spoken to until the connection ends.
"""

import ssl as tls
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio
import msgspec
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from ..mux import envelope as wire_format
from ..mux.errors import InvalidMessage, SessionLost, TrunklineError
from .client_ledger import Ledger
from .dialer import MAX_TOLD, CannotConnect, Dialer
from .headers import SESSION_ID
from .retries import Retries
from .upstream.http import CONNECT_SECONDS
from .upstream.upgrade import CLOSE_SECONDS

if TYPE_CHECKING:
    from mcp.shared.message import SessionMessage
    from mcp_types import JSONRPCMessage

    Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]

COMES_BACK: Final = frozenset({1001, 1005, 1006, 1011, 1012, 1013, 1014, 4408})
"""Close codes after which the session may go on. After any other, the server has said that it does not."""


@asynccontextmanager
async def websocket_client(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    workflow: str | None = None,
    attempts: int = 10,
    seconds: float = 60.0,
    ssl: tls.SSLContext | None = None,
) -> "AsyncIterator[Streams]":
    """A transport for `mcp.Client`, to a `ws://` or `wss://` URL. `headers` go with each connection.

    `workflow` is a key of your own: clients that give the same one share a session (`Trunkline-Workflow`).

    A connection that is cut is taken up again with at most `attempts` tries within `seconds`, ever later. Calls in
    flight are answered once it is. Where the session is gone, or no try succeeds, they fail with -31002, whose
    `data.executed` says that they may have run, and the streams end.

    Raises:
        CannotConnect: the first connection did not come about.
        ImportError: the SDK's 2.x line is not installed.
        ValueError: a URL, headers, attempts or seconds that cannot be used.
    """
    client = _Client(Dialer(url, headers or {}, workflow, ssl), Retries(attempts, seconds), _codec())
    failure: BaseException | None = None
    try:
        await client.open()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.read, tasks)
            tasks.start_soon(client.write, tasks)
            try:
                yield client.incoming, client.outgoing
            except (Exception, SystemExit, KeyboardInterrupt) as error:  # the task group would wrap it
                failure = error
            finally:
                await client.close()
                tasks.cancel_scope.cancel()
    finally:
        client.drop()
    if failure is not None:
        raise failure


class _Codec(NamedTuple):
    """What the SDK's session takes and gives."""

    message: "Callable[[JSONRPCMessage], SessionMessage]"
    parse: "Callable[[bytes], JSONRPCMessage]"

    def read(self, text: bytes) -> "SessionMessage | Exception":
        """One message for the session; what is none, as the exception that says so."""
        try:
            return self.message(self.parse(text))
        except ValueError as error:
            return error


def _codec() -> _Codec:
    # Not at the head of the module: who takes only the gateway's side of the library need not have the SDK.
    try:
        message, types = import_module("mcp.shared.message"), import_module("mcp_types")
    except ImportError:
        raise ImportError("websocket_client needs the MCP SDK's 2.x line: pip install 'mcp>=2'") from None
    adapter = types.jsonrpc_message_adapter
    return _Codec(message.SessionMessage, lambda text: adapter.validate_json(text, by_name=False))


class _Client:
    """One session. `read` and `write` each run as a task, from its opening to its close."""

    def __init__(self, dialer: Dialer, retries: Retries, codec: _Codec) -> None:
        self._dialer = dialer
        self._retries = retries
        self._codec = codec
        self._ledger = Ledger(keyed=dialer.is_keyed)
        self._connection: ClientConnection | None = None
        """The connection that carries the session; None while there is none."""
        self._is_up = anyio.Event()
        self._is_closing = False
        self._held: SessionMessage | None = None
        """A message that waits for a connection, and was never written."""
        self._has_written = anyio.Event()
        """Set once nothing more will be written."""
        # Neither stream holds anything: who sends waits for who receives.
        self._received, self.incoming = anyio.create_memory_object_stream["SessionMessage | Exception"](0)
        self.outgoing, self._to_write = anyio.create_memory_object_stream["SessionMessage"](0)

    async def open(self) -> None:
        """Connect for the first time."""
        connection = await self._dialer.dial({}, CONNECT_SECONDS)
        response = connection.response
        self._ledger.session_id = response.headers.get(SESSION_ID, "") if response is not None else ""
        self._use(connection)

    async def read(self, tasks: TaskGroup) -> None:
        """Hand on what comes, from one connection after the other, until the session is over."""
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):  # the session reads no more
            try:
                while self._connection is not None:
                    await self._read_one(self._connection, tasks)
                    if self._is_closing:
                        return
                    await self._come_back(self._connection, tasks)
            except SessionLost as lost:
                await self._end(lost)

    async def write(self, tasks: TaskGroup) -> None:
        """Write what the session sends, on the connection that there is."""
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            try:
                async for message in self._to_write:
                    await self._write_one(message, tasks)
            finally:
                self._has_written.set()

    async def close(self) -> None:
        """Write what was taken, and close the connection in order, in bounded time."""
        self._is_closing = True
        self.outgoing.close()
        connection = self._connection
        if connection is not None:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._has_written.wait()
                await connection.close()

    def drop(self) -> None:
        """Hold nothing any longer: no scope is a shield against the cancellation of a task that closes."""
        if self._connection is not None:
            self._connection.transport.abort()
        for stream in (self._received, self.incoming, self.outgoing, self._to_write):
            stream.close()

    def _use(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._is_up.set()

    async def _read_one(self, connection: ClientConnection, tasks: TaskGroup) -> None:
        with suppress(ConnectionClosed):
            async for frame in connection:
                if not isinstance(frame, str):
                    await connection.close(1003)
                    return
                taken = self._ledger.took(frame.encode())
                if self._ledger.is_settled and self._retries.made:
                    self._retries.succeeded()
                if taken.write:
                    tasks.start_soon(self._put, connection, taken.write)  # the reader waits for nobody who reads
                for text in taken.deliver:
                    await self._received.send(self._codec.read(text))

    async def _come_back(self, cut: ClientConnection, tasks: TaskGroup) -> None:
        """Go on on another connection.

        Raises:
            SessionLost: the session is gone, or is not to be had.
        """
        self._connection, self._is_up = None, anyio.Event()
        if not self._ledger.can_come_back or cut.close_code not in COMES_BACK:
            raise SessionLost(_last_words(cut), executed="unknown")
        why, at_least = "", 0.0
        while (wait := self._retries.next(time.monotonic(), at_least)) is not None:
            await anyio.sleep(wait)
            try:
                patience = min(CONNECT_SECONDS, self._retries.left(time.monotonic()))
                connection = await self._dialer.dial(self._ledger.headers(), patience)
            except CannotConnect as error:
                if not error.may_pass:
                    raise SessionLost(f"the session cannot go on: {error}", executed="unknown") from error
                why, at_least = f": {error}", error.retry_after
                continue
            tasks.start_soon(self._put, connection, self._ledger.came_back())
            self._use(connection)
            return
        tries = f"{self._retries.made} tries to come back did not succeed"
        raise SessionLost(f"the connection was cut, and {tries}{why}", executed="unknown")

    async def _write_one(self, message: "SessionMessage", tasks: TaskGroup) -> None:
        self._held = message
        while (connection := self._connection) is None:
            await self._is_up.wait()
        # No wait from the choice of the connection to the entry in the books: what comes back later knows of it.
        self._held = None
        text = message.message.model_dump_json(by_alias=True, exclude_unset=True).encode()
        try:
            is_to_confirm = self._ledger.wrote(text)
        except InvalidMessage as error:
            await self._refuse(message, error, connection)
            return
        with suppress(ConnectionClosed):
            await connection.send(text.decode())
        if is_to_confirm:
            tasks.start_soon(self._confirm, connection, [text])

    async def _put(self, connection: ClientConnection, texts: list[bytes]) -> None:
        with suppress(ConnectionClosed):
            for text in texts:
                await connection.send(text.decode())
        await self._confirm(connection, texts)

    async def _confirm(self, connection: ClientConnection, texts: list[bytes]) -> None:
        """Wait for the pong that says that the server has these messages."""
        with suppress(ConnectionClosed):
            pong = await connection.ping()
            await pong
            for text in texts:
                self._ledger.arrived(text)

    async def _refuse(self, message: "SessionMessage", error: TrunklineError, connection: ClientConnection) -> None:
        """A message that no server takes: whoever waits for it gets an error instead."""
        failure = _failure(message, error)
        if failure and hasattr(message.message, "method"):
            await self._received.send(self._codec.read(failure))
        elif failure:
            await self._put(connection, [failure])

    async def _end(self, lost: SessionLost) -> None:
        """Tell whoever waits, and what reads the stream, that the session is over."""
        failures = self._ledger.fail(lost)
        if self._held is not None:
            failures.append(_failure(self._held, SessionLost(lost.message, executed="no")))
        for text in filter(None, failures):
            await self._received.send(self._codec.read(text))
        await self._received.send(ConnectionError(lost.message))
        self._received.close()
        self._to_write.close()


def _last_words(cut: ClientConnection) -> str:
    """Why a connection cannot be taken up by another."""
    code, reason = cut.close_code, (cut.close_reason or "")[:MAX_TOLD]
    if code in COMES_BACK:
        return "the connection was cut, and the server has no session to come back to"
    words = {1000: "the server closed the session", 4404: "the session has ended"}
    words[4409] = "another connection goes on with the session"
    told = f": {reason}" if reason.isprintable() and reason else ""
    return words.get(code or 0, f"the server closed the connection ({code})") + told


def _failure(message: "SessionMessage", error: TrunklineError) -> bytes:
    """The error response for a request or, in place of it, an answer; nothing for a notification."""
    asked = getattr(message.message, "id", None)
    return b"" if asked is None else wire_format.failure(msgspec.json.encode(asked), error)
