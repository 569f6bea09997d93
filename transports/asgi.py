"""The little of ASGI that the hot path needs: headers, a bounded body, an answer."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio

from ..mux.envelope import Text
from ..mux.limits import MAX_BODY_BYTES
from ..mux.principal import Principal
from .media import JSON_TYPE, STREAM_TYPE
from .parts import keep

if TYPE_CHECKING:
    from .sse import Named

BODY_SECONDS: Final = 60.0
"""How long a client may take to send a body."""

SEND_SECONDS: Final = 60.0
"""A client that takes nothing for this long is treated as gone; it may come back and resume."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

HOPS: Final = "trunkline.hops"
"""The member of a scope that counts the workers which have handed the request on."""

MEANT: Final = "trunkline.meant"
"""How many calls over all workers a cancellation can mean; `ASKED` where this worker is to tell how many it has."""

ASKED: Final = -1

IDENTITY: Final = "trunkline.identity"
"""The scope's entry for who asks, and until when, where that was verified before: by the worker that forwarded it."""

GRANT: Final = "trunkline.grant"
"""The scope's entry for by what a request may keep something open, where that is withdrawn by another worker."""

JSON: Final = (b"content-type", JSON_TYPE.encode())
EVENT_STREAM: Final[RawHeaders] = [
    (b"content-type", STREAM_TYPE.encode()),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


def is_settled(scope: Scope) -> bool:
    """Whether this worker is to serve a request in any case: it was handed on, or all workers were asked about it."""
    return bool(scope.get(HOPS)) or scope.get(MEANT) is not None


class BodyTooLarge(Exception):
    """The body is larger than `MAX_BODY_BYTES`."""


class BodyTooSlow(Exception):
    """The body did not come to its end within `BODY_SECONDS`; nothing of it is kept."""


class ClientLeft(Exception):
    """The client closed the connection before its request was complete."""


class Grant:
    """What a credential opens: it is withdrawn with the credential, and whoever holds something open by it is told."""

    def __init__(self) -> None:
        self.is_withdrawn = False
        self._watchers: dict[object, Callable[[], None]] = {}

    @contextmanager
    def watched(self, withdrawn: Callable[[], None]) -> Iterator[None]:
        """While this is entered, a withdrawal calls `withdrawn`; at once where it was before."""
        watcher = object()
        self._watchers[watcher] = withdrawn
        try:
            if self.is_withdrawn:
                withdrawn()
            yield
        finally:
            del self._watchers[watcher]

    def withdraw(self) -> None:
        """The credential no longer counts. Idempotent."""
        if not self.is_withdrawn:
            self.is_withdrawn = True
            for withdrawn in list(self._watchers.values()):
                withdrawn()


NO_FIELDS: Final[Mapping[str, str]] = {}

IDENTITY_ENDED: Final = "identity_ended"
"""The word by which streams and sockets are counted that end with the identity that opened them."""

UNBOUND: Final = Grant()
"""Of requests whose identity is verified by somebody who withdraws nothing."""


class Checks:
    """What was found of request headers, whoever sends them: it holds for all requests whose heads are the same."""

    __slots__ = ("agreed", "cors", "named", "seal")

    def __init__(self) -> None:
        self.seal: object = None
        """Of the endpoint that has let them pass, of all that it has one for."""
        self.cors: RawHeaders = []
        """What lets a page read its answers."""
        self.agreed = "", ""
        """The session with which they were found to agree, and its revision: one of another may begin under its id."""
        self.named: Named | None = None
        """What they name, where they are those of a message of HTTP+SSE."""


class RequestHeaders(dict[str, str]):
    """Request headers by lower-case name, and what else identifies a request."""

    __slots__ = ("checks", "expires", "grant", "identity", "peer", "query")

    def __init__(
        self,
        peer: str = "",
        query: bytes = b"",
        fields: Mapping[str, str] = NO_FIELDS,
        checks: Checks | None = None,
    ) -> None:
        super().__init__(fields)
        self.peer = peer
        """The address of the socket's peer."""
        self.query = query
        """The query string: it may hold secrets, and is never logged."""
        self.expires = inf
        """When the identity of the request ends, in wall time; set by who verifies it."""
        self.grant = UNBOUND
        """By what it may keep something open; set by who verifies the identity."""
        self.identity: tuple[Principal, float] | None = None
        """Who asks, and until when, where that was verified before."""
        self.checks = Checks() if checks is None else checks

    @contextmanager
    def held(self) -> Iterator[anyio.CancelScope]:
        """What is inside is cancelled when the identity expires, or what it came by is withdrawn: the scope tells."""
        deadline = anyio.current_time() + self.expires - time.time()
        with anyio.CancelScope(deadline=deadline) as scope, self.grant.watched(scope.cancel):
            yield scope


def headers_of(scope: Scope) -> RequestHeaders:
    """Request headers."""
    client = scope.get("client")
    headers = RequestHeaders(client[0] if client else "", scope.get("query_string", b""), read_fields(scope["headers"]))
    headers.identity = scope.get(IDENTITY)
    headers.grant = scope.get(GRANT, UNBOUND)
    return headers


def read_fields(raw: RawHeaders) -> dict[str, str]:
    """Headers by lower-case name. One that comes twice is joined by a comma, as HTTP allows (RFC 9110, 5.3)."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1").strip(" \t")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


class WholeRequest(Protocol):
    """An HTTP request that came whole, as a server offers it to who can answer it without a task of its own."""

    scope: Scope
    headers: RequestHeaders
    """Those of the scope but for the length; the same object where the connection's request before had the same."""
    left: Callable[[], None] | None
    """Set by who takes it: called when the client has gone before the end of the answer."""

    @property
    def has_left(self) -> bool:
        """Whether the client has gone already, or sends nothing more, which looks alike."""

    @property
    def body(self) -> bytes:
        """All of it."""

    async def receive(self) -> Message:
        """As ASGI has it."""

    async def send(self, message: Message) -> None:
        """As ASGI has it."""

    def reply(self, status: int, headers: RawHeaders, body: Text) -> None:
        """The whole answer, at once and however long: whoever is still taking one is not offered here.

        The names of the headers are in lower case, and the length is not among them. The list is its own from then on.
        """

    def go_on(self, work: Awaitable[None]) -> None:
        """Have it answered in a task after all, by this."""

    def decline(self) -> None:
        """Leave it to the application after all, as one that nobody took; nothing was done."""


async def read_body(receive: Receive, declared: str | None, note: Callable[[int], None]) -> bytes:
    """The whole body; `note` hears how much of it has come, and may refuse it by what it raises.

    Raises:
        BodyTooLarge: declared or found to be larger than allowed; nothing of it is kept.
        BodyTooSlow: it took too long.
        ClientLeft: it did not come to its end.
    """
    if declared is not None and (
        not (declared.isascii() and declared.isdigit()) or int(declared[:12]) > MAX_BODY_BYTES
    ):
        raise BodyTooLarge
    parts: list[bytes | bytearray] = []
    size, message = 0, await receive()
    with anyio.move_on_after(BODY_SECONDS):
        while True:
            if message["type"] != "http.request":
                raise ClientLeft
            body = message.get("body", b"")
            size += len(body)
            if size > MAX_BODY_BYTES:
                raise BodyTooLarge
            keep(parts, body)
            note(size)
            if not message.get("more_body", False):
                return b"".join(parts)
            message = await receive()
    raise BodyTooSlow


async def respond(send: Send, status: int, headers: RawHeaders, body: bytes = b"") -> None:
    """One complete answer."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def has_left(receive: Receive) -> bool:
    """Whether the client has closed the connection, as far as is known; its whole request has come."""
    with anyio.CancelScope(deadline=-inf):  # what is known is told without waiting
        return bool((await receive())["type"] == "http.disconnect")
    return False


async def until_disconnect(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
