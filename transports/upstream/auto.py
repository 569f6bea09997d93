"""The transport that a server speaks: by the scheme of its URL, and over HTTP by how it answers `initialize`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Literal, Protocol
from urllib.parse import urlsplit

import anyio
import msgspec

from ...mux.errors import TrunklineError, UpstreamFault
from ...mux.ports import NONE, Connector, Headers, MovableWire, Receiver, SendKind, Wire
from ...mux.request import Request
from ...mux.statistics import Statistics
from ..unfinished import Unfinished
from .answers import nothing
from .credentials import Credential
from .http_client import Trusted
from .sse import SSEConnector
from .stdio import StdioConnector
from .streamable_http import HTTPWire, StreamableHTTPConnector
from .websocket import WebSocketConnector

logger = logging.getLogger(__name__)

FALL_BACK: Final = frozenset({400, 404, 405})
"""What servers of HTTP+SSE answer to the POST of an `initialize` (rule T4)."""

HTTPKind = Literal["streamable_http", "sse"]


class ClosableConnector(Connector, Protocol):
    """A connector with what outlives its sessions."""

    async def close(self) -> None:
        """Give up what is held for coming sessions; after the sessions have ended. Idempotent."""


class RotatingConnector(ClosableConnector, Protocol):
    """A connector whose credentials may get other values while it has sessions."""

    def rotate(self, headers: Headers) -> None:
        """Send these values under the same names, from the next request on; what has no request goes on as it is.

        Raises:
            ValueError: headers that cannot be used; nothing has changed.
        """


def connector_for(
    server: str,
    statistics: Statistics,
    *,
    url: str = "",
    command: Sequence[str] = (),
    headers: Headers | None = None,
    ca: Trusted = "",
    credential: Credential | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    unfinished: Unfinished | None = None,
) -> RotatingConnector:
    """The connector that a server's settings ask for: either `url` or `command` is given.

    What the server sends counts to what is `unfinished` of it, where others lead there as well.

    Raises:
        ValueError: a URL, command or header that cannot be used; a credential for a server without HTTP.
    """
    if bool(url) == bool(command):
        raise ValueError("give either a url or a command")
    if credential is not None and urlsplit(url).scheme in ("", "ws", "wss"):
        raise ValueError("only HTTP carries a credential that is renewed")
    if isinstance(command, str):
        raise ValueError("a command is a list: the program and its arguments")
    if command:
        return StdioConnector(server, command, statistics, env=env, cwd=cwd)
    scheme = urlsplit(url).scheme
    if scheme in ("ws", "wss"):
        return WebSocketConnector(server, url, statistics, headers=headers, ca=ca, unfinished=unfinished)
    make: type[AutoConnector | SSEConnector] = AutoConnector
    if scheme in ("sse+http", "sse+https"):
        make, url = SSEConnector, url.partition("+")[2]
    elif scheme not in ("http", "https"):
        raise ValueError("a URL begins with http, https, sse+http, sse+https, ws or wss; a command is a list")
    return make(server, url, statistics, headers=headers, ca=ca, credential=credential, unfinished=unfinished)


class AutoConnector:
    """Opens sessions by Streamable HTTP, or HTTP+SSE where the server speaks that. Implements `Connector`.

    What was found is remembered; where it fails to open, it is looked for anew.

    Raises:
        ValueError: a URL or headers that cannot be used.
    """

    def __init__(
        self,
        server: str,
        url: str,
        statistics: Statistics,
        *,
        headers: Headers | None = None,
        ca: Trusted = "",
        credential: Credential | None = None,
        unfinished: Unfinished | None = None,
    ) -> None:
        self.server = server
        streamable = self.streamable = StreamableHTTPConnector(
            server, url, statistics, headers=headers, ca=ca, credential=credential, unfinished=unfinished
        )
        self.sse = SSEConnector(
            server, url, statistics, headers=headers, http=streamable.http, unfinished=streamable.unfinished
        )
        self.kind: HTTPKind | None = None
        """What the server is known to speak."""
        self.when_unopened: Callable[[], None] = nothing
        """Called when a session did not open: the server may speak something else by now (rule L29)."""

    def connect(self, receiver: Receiver, headers: Headers, *, listen: bool) -> AbstractAsyncContextManager[Wire]:
        """See `Connector.connect`."""
        if self.kind == "streamable_http":
            return _Known(self, receiver, headers, listen=listen)
        return self._find(receiver, headers, listen=listen)

    @asynccontextmanager
    async def _find(self, receiver: Receiver, headers: Headers, *, listen: bool) -> AsyncIterator[Wire]:
        """A wire of the kind that the server is found to speak."""
        failure: Exception | None = None
        async with AsyncExitStack() as stack:
            wire: Wire | None = None
            if self.kind == "sse":
                wire = await self._open_sse(stack, receiver, headers, listen=listen)
            if wire is None:
                opening = _Opening(self, receiver, headers, listen=listen)
                wire = await stack.enter_async_context(opening.running())
            try:
                yield wire
            except Exception as error:  # kept out of the task group inside, which would wrap it
                failure = error
        if failure is not None:
            raise failure

    def adopt(
        self, receiver: Receiver, headers: Headers, session: str, revision: str, *, listen: bool
    ) -> AbstractAsyncContextManager[Wire]:
        """See `AdoptingConnector.adopt`: only sessions by Streamable HTTP are movable."""
        return self.streamable.adopt(receiver, headers, session, revision, listen=listen)

    def rotate(self, headers: Headers) -> None:
        """See `RotatingConnector.rotate`."""
        self.streamable.rotate(headers)
        self.sse.rotate(headers)

    async def close(self) -> None:
        """Close the HTTP client. Idempotent."""
        await self.streamable.close()

    async def _open_sse(
        self, stack: AsyncExitStack, receiver: Receiver, headers: Headers, *, listen: bool
    ) -> Wire | None:
        """A wire of the remembered kind; None where the server no longer speaks it."""
        try:
            return await stack.enter_async_context(self.sse.connect(receiver, headers, listen=listen))
        except TrunklineError as error:
            if "status" not in error.data and not isinstance(error, UpstreamFault):
                raise  # it cannot be reached, which says nothing about what it speaks
            logger.info("HTTP+SSE no longer opens: %s", error.message, extra={"server": self.server})
            self.kind = None
            return None


class _Known(HTTPWire):
    """A session with a server that is known to speak Streamable HTTP; where it does not open, that is forgotten."""

    __slots__ = ("_auto",)

    def __init__(self, auto: AutoConnector, receiver: Receiver, headers: Headers, *, listen: bool) -> None:
        super().__init__(auto.streamable, receiver, headers, listen=listen)
        self._auto = auto

    async def __aexit__(self, *raised: object) -> None:
        """See `HTTPWire`."""
        if not self.is_established:
            self._auto.kind = None
            self._auto.when_unopened()
        await super().__aexit__(*raised)


class _First(HTTPWire):
    """The wire by which a session begins of which it is to be found out how the server speaks."""

    __slots__ = ("status",)

    def __init__(
        self, connector: StreamableHTTPConnector, receiver: Receiver, headers: Headers, *, listen: bool
    ) -> None:
        super().__init__(connector, receiver, headers, listen=listen)
        self.status = 0
        """Of the answer to the `initialize`; 0 before it."""

    def _opens(self, status: int, headers: Headers) -> None:
        self.status = status
        super()._opens(status, headers)


class _Opening:
    """A session that begins by Streamable HTTP, and goes on by what the server speaks.

    Implements `MovableWire` for the channel, and `Receiver` for the first wire. The second one is opened and closed by
    a task of its own.
    """

    def __init__(self, connector: AutoConnector, receiver: Receiver, headers: Headers, *, listen: bool) -> None:
        self._connector = connector
        self._receiver = receiver
        self._session = (headers, listen)
        self._http = _First(connector.streamable, self, headers, listen=listen)
        self._wire: Wire = self._http
        self._tasks: asyncio.TaskGroup
        self._is_left = self._is_established = False
        self._first: tuple[bytes, Request, Headers] | None = None
        """The `initialize`, to be sent again."""
        self._refusal: bytes | None = None
        """The body that refused it, where that is a JSON-RPC error."""
        self._second: asyncio.Task[None] | None = None
        """Owns the session by HTTP+SSE."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Wire]:
        """The wire, for the length of the context."""
        async with asyncio.TaskGroup() as self._tasks, self._http:
            try:
                yield self
            finally:
                self._is_left = True
                if not self._is_established:
                    self._connector.when_unopened()
                if self._second is not None:
                    self._second.cancel()

    # Wire

    def send(
        self, text: bytes, *, kind: SendKind = "notification", request: Request | None = None, headers: Headers = NONE
    ) -> None:
        """See `Wire.send`."""
        if request is not None and self._first is None:
            self._first = text, request, headers
        self._wire.send(text, kind=kind, request=request, headers=headers)

    def abandon(self, request: Request) -> None:
        """See `Wire.abandon`."""
        self._wire.abandon(request)

    async def establish(self, revision: str, initialized: bytes) -> None:
        """See `Wire.establish`."""
        await self._wire.establish(revision, initialized)
        self._is_established = True
        self._http.receiver = self._receiver  # what there was to find out is known
        self._connector.kind = "streamable_http" if self._second is None else "sse"

    # MovableWire

    @property
    def session(self) -> str:
        """See `MovableWire.session`: empty where the server speaks HTTP+SSE."""
        return self._wire.session if isinstance(self._wire, MovableWire) else ""

    def release(self) -> None:
        """See `MovableWire.release`."""
        if isinstance(self._wire, MovableWire):
            self._wire.release()

    def listen(self) -> None:
        """See `MovableWire.listen`."""
        if isinstance(self._wire, MovableWire):
            self._wire.listen()

    def rest(self) -> None:
        """See `MovableWire.rest`."""
        if isinstance(self._wire, MovableWire):
            self._wire.rest()

    # Receiver

    @property
    def fence(self) -> Callable[[], bool] | None:
        """See `Receiver.fence`."""
        return self._receiver.fence

    def withheld(self, request: Request | None) -> None:
        """See `Receiver.withheld`."""
        self._receiver.withheld(request)

    def received(self, text: bytes, origin: Request | None) -> None:
        """See `Receiver.received`."""
        if self._is_refused(origin) and not names_revisions(text):
            self._refusal = text  # what becomes of the request is told next
        else:
            self._receiver.received(text, origin)

    def failed(self, request: Request, error: TrunklineError) -> None:
        """See `Receiver.failed`."""
        if self._is_refused(request):
            self._second = self._tasks.create_task(self._fall_back(error))
        else:
            self._receiver.failed(request, error)

    def lost(self, cause: TrunklineError, refused: Collection[Request] = ()) -> None:
        """See `Receiver.lost`."""
        self._receiver.lost(cause, refused)

    # Inside.

    def _is_refused(self, request: Request | None) -> bool:
        """Whether this is the `initialize`, in the words of a server that does not speak Streamable HTTP."""
        return (
            self._first is not None
            and request is self._first[1]
            and self._http.status in FALL_BACK
            and self._second is None
            and not self._is_left
        )

    async def _fall_back(self, error: TrunklineError) -> None:
        """Own a session by HTTP+SSE until it is cancelled; where it does not open, the server's first words stand."""
        assert self._first is not None, "it was refused"
        text, request, call_headers = self._first
        headers, listen = self._session
        try:
            async with self._connector.sse.connect(self._receiver, headers, listen=listen) as self._wire:
                self._wire.send(text, request=request, headers=call_headers)
                await anyio.sleep_forever()
        except TrunklineError as fault:
            logger.info("HTTP+SSE does not open either: %s", fault.message, extra={"server": self._connector.server})
            if self._refusal is not None:
                self._receiver.received(self._refusal, request)
            if request.state != "done":
                self._receiver.failed(request, error)


class _Data(msgspec.Struct):
    supported: list[str]


class _Error(msgspec.Struct):
    data: _Data


class _Refusal(msgspec.Struct):
    error: _Error


def names_revisions(text: bytes) -> bool:
    """Whether this is a JSON-RPC error that names the revisions which the server speaks: it speaks no older one."""
    try:
        msgspec.json.decode(text, type=_Refusal)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
