"""A session on a wire, as the contract uses one, and the server at its other end: any test of a wire may."""

import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, Protocol

import anyio
from trunkline.mux.errors import SessionLost, TrunklineError
from trunkline.mux.ports import NONE, Caller, Connector, Headers, Owner, SendKind, Wire
from trunkline.mux.request import Request

PATIENCE: Final = 30.0
"""Seconds within which a message arrives."""

REVISION: Final = "2025-11-25"
INITIALIZED: Final = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


class Incoming(Protocol):
    """One message as it came to the server."""

    @property
    def text(self) -> bytes:
        """The message, byte for byte."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What came with it, by lower-case name; empty where the transport has none."""

    @property
    def is_cut(self) -> bool:
        """True once the wire gave the exchange of this request up."""

    def say(self, text: bytes) -> None:
        """Send this before the answer: on the stream of this request, where the transport has one for each."""

    def finish(self, text: bytes) -> None:
        """Send this and end the exchange."""

    def cut(self) -> None:
        """Break the exchange without an answer."""


class Server(Protocol):
    """The other end."""

    @property
    def binds(self) -> bool:
        """Whether each request has a stream of its own, so that messages on it belong to it."""

    @property
    def acknowledges(self) -> bool:
        """Whether the transport tells what became of each message; if not, a server that refuses one closes."""

    @property
    def listens(self) -> bool:
        """Whether somebody fetches unasked messages now."""

    async def got(self, method: str, count: int = 1) -> Incoming:
        """Wait until so many messages of this method (or `response`) came in; the last of them."""

    def came(self, method: str) -> int:
        """How many of this method came in so far."""

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; it is looked at whenever something happens here."""

    def tell(self, text: bytes) -> None:
        """Send this unasked."""

    def forget(self) -> None:
        """Know the session no longer: refuse what comes, unexecuted, in the words of the transport."""

    def refuse_initialized(self) -> None:
        """Accept no `notifications/initialized`."""

    def stall(self) -> None:
        """Answer no good-bye."""

    @property
    def ended(self) -> bool:
        """True once the session was ended by the wire."""


class Report(NamedTuple):
    """One call of the wire to its receiver."""

    what: str
    request: Request | None = None
    text: bytes = b""
    error: TrunklineError | None = None
    refused: tuple[Request, ...] = ()


class Receiver:
    """A channel's side of a wire, written down. Requests are done once their response came, as in a channel."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.sending = False
        self.left = False
        self.fence: Callable[[], bool] | None = None
        """See `Receiver.fence`."""
        self._changed = anyio.Event()

    def received(self, text: bytes, origin: Request | None) -> None:
        """See `Receiver.received`."""
        if origin is not None and id_of(text) == origin.id:
            origin.state = "done"
        self._report(Report("received", origin, text))

    def failed(self, request: Request, error: TrunklineError) -> None:
        """See `Receiver.failed`."""
        assert request.state != "done", "it was answered, or has failed before"
        request.state = "done"
        self._report(Report("failed", request, error=error))

    def withheld(self, request: Request | None) -> None:
        """See `Receiver.withheld`."""
        if request is not None:
            assert request.state != "done", "it was answered, or has failed before"
            request.state = "done"
        self._report(Report("withheld", request))

    def lost(self, cause: TrunklineError, refused: Collection[Request] = ()) -> None:
        """See `Receiver.lost`."""
        assert all(request.state != "done" for request in refused), "refused, and yet answered or failed"
        for request in refused:
            request.state = "done"
        self._report(Report("lost", error=cause, refused=tuple(refused)))

    def of(self, what: str) -> list[Report]:
        """The reports of one kind."""
        return [report for report in self.reports if report.what == what]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; it is looked at with each report."""
        with anyio.fail_after(PATIENCE):
            while not condition():
                await self._changed.wait()

    def _report(self, report: Report) -> None:
        assert not self.sending, "a wire must not call back from within `send`: the channel is busy"
        assert not self.left, f"{report} came after the context was left"
        self.reports.append(report)
        self._changed.set()
        self._changed = anyio.Event()


class Nobody:
    """Nobody."""

    is_own = False

    @property
    def owner(self) -> Owner:
        raise NotImplementedError

    def answered(self, message: bytes, *, is_error: bool) -> None:
        raise NotImplementedError

    def progressed(self, message: bytes) -> None:
        raise NotImplementedError

    def failed(self, error: TrunklineError) -> None:
        raise NotImplementedError


class Session:
    """A wire in use: what a channel would do with it."""

    def __init__(self, wire: Wire, receiver: Receiver) -> None:
        self.wire = wire
        self.receiver = receiver
        self._ids = 0

    def request(
        self, method: str = "tools/call", params: Any = None, headers: Headers = NONE, *, token: bytes = b""
    ) -> Request:
        """Send a request; one that wants progress has a `token`."""
        self._ids += 1
        caller: Caller = Nobody()
        request = Request(self._ids, b"1", token, caller, 0.0, 60.0)
        message = {"jsonrpc": "2.0", "id": self._ids, "method": method, "params": params or {}}
        self._send(json.dumps(message).encode(), request=request, headers=headers)
        return request

    def send(self, text: bytes, kind: SendKind = "notification", headers: Headers = NONE) -> None:
        """Send a message without an answer."""
        self._send(text, kind=kind, headers=headers)

    def _send(self, text: bytes, **options: Any) -> None:
        self.receiver.sending = True
        try:
            assert self.wire.send(text, **options) is None  # type: ignore[func-returns-value]
        finally:
            self.receiver.sending = False

    async def answered(self, request: Request) -> Report:
        """Wait for the response to a request."""
        here = self.receiver
        await here.until(lambda: any(id_of(one.text) == request.id and is_response(one.text) for one in here.reports))
        return next(one for one in here.reports if id_of(one.text) == request.id and is_response(one.text))

    async def call(self, server: Server, count: int = 1) -> None:
        """Send a call, which is the so-manieth that comes to the server, and let it be answered."""
        request = self.request()
        (await server.got("tools/call", count)).finish(answer(request))
        await self.answered(request)

    async def lost(self) -> SessionLost:
        """Wait for the end of the session; how it was lost."""
        await self.receiver.until(lambda: self.receiver.of("lost"))
        (report,) = self.receiver.of("lost")
        assert isinstance(report.error, SessionLost)
        assert report.error.data == {"executed": "unknown"}
        return report.error

    async def shake_hands(self, revision: str = REVISION) -> None:
        """What a channel does first."""
        params = {"protocolVersion": revision, "capabilities": {}, "clientInfo": {"name": "contract", "version": "1"}}
        await self.answered(self.request("initialize", params))
        await self.wire.establish(revision, INITIALIZED)


@asynccontextmanager
async def connected(connector: Connector, headers: Headers = NONE, *, listen: bool = True) -> AsyncIterator[Session]:
    """A session before its handshake."""
    receiver = Receiver()
    async with connector.connect(receiver, headers, listen=listen) as wire:
        yield Session(wire, receiver)
    receiver.left = True


@asynccontextmanager
async def opened(connector: Connector, headers: Headers = NONE, *, listen: bool = True) -> AsyncIterator[Session]:
    """A session after its handshake."""
    async with connected(connector, headers, listen=listen) as session:
        await session.shake_hands()
        yield session
    await settle()


def answer(request: Request, result: Any = None) -> bytes:
    """The server's answer."""
    return b'{"jsonrpc":"2.0","id":%d,"result":%s}' % (request.id, json.dumps(result or {}).encode())


def told(n: int) -> bytes:
    """Something a server says."""
    return b'{"jsonrpc":"2.0","method":"notifications/message","params":{"data":%d}}' % n


def id_of(text: bytes) -> int | None:
    return json.loads(text).get("id") if text else None


def is_response(text: bytes) -> bool:
    return bool(text) and "method" not in json.loads(text)


async def settle() -> None:
    """Let every task that can go on do so: for what must not happen."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()
