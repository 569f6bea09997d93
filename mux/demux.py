"""The demultiplexer of one channel: many callers' requests over one upstream session, told apart by minted ids.

Pure: no I/O, no clock. Every method takes the time it needs as `now` (seconds, monotonic) and returns what has to
happen as events; the channel performs them. What may happen to a request is told by the tables in `request`.

Ids are positive integers below 2**53, drawn in blocks, never used twice in a session (rules E3, E4).
"""

from typing import Final, Literal, NamedTuple

from msgspec import Raw

from . import envelope as wire_format
from .envelope import Envelope, IdKey, Text, id_key, key_or_none, minted
from .errors import Cancelled, IllegalMove, Overloaded, SessionLost, TimedOut, TrunklineError
from .limits import MAX_EVENT_BYTES
from .ports import Caller, Owner
from .request import (
    EXTENSIONS,
    REQUESTS,
    SERVER_REQUESTS,
    Request,
    RequestEffect,
    RequestInput,
    ServerRequest,
    ServerRequestEffect,
    ServerRequestInput,
)

TOMBSTONE_SECONDS: Final = 30.0
"""How long the late answer to an abandoned request is waited for (rule E15); then its exchange is given up."""

MAX_SERVER_REQUESTS: Final = 256
"""Requests of one server that may wait for an answer at once."""


class Answered(NamedTuple):
    """Give the caller its response."""

    request: Request
    message: Text
    is_error: bool


class Progressed(NamedTuple):
    """Give the caller progress."""

    request: Request
    message: bytes


class Failed(NamedTuple):
    """Tell the caller that no response will come."""

    request: Request
    error: TrunklineError


class ToServer(NamedTuple):
    """Send this message upstream."""

    message: bytes
    kind: Literal["notification", "response"]


class Abandon(NamedTuple):
    """Nobody waits any longer: the exchange that carries this request upstream may be cut."""

    request: Request


class Asked(NamedTuple):
    """The server asks a client something."""

    request: ServerRequest
    message: Envelope


class Retracted(NamedTuple):
    """The server cancels what it asked."""

    request: ServerRequest
    message: Envelope


class Told(NamedTuple):
    """The server tells a client something."""

    message: Envelope
    origin: Request | None


class Ignored(NamedTuple):
    """Nothing to do; the reason is counted."""

    reason: Literal["late_response", "unknown_response", "unknown_progress", "unknown_cancel", "duplicate_server_id"]
    request: Request | None = None
    """The request that is over by it."""


FromServer = Answered | Progressed | ToServer | Asked | Retracted | Told | Ignored
Due = Failed | ToServer | Abandon | Retracted


class Demux:
    """All requests in flight on one upstream session.

    `max_inflight` bounds the calls, tombstones included: one that was cancelled still costs the server. What the
    gateway asks for itself has as many places beside them, and one more: a session that opens is told all at once.
    `timeout` (seconds) is how long a call may stay without answer or progress.
    """

    __slots__ = (
        "_blocks",
        "_calls",
        "_end",
        "_max_inflight",
        "_next_id",
        "_requests",
        "_server_requests",
        "_timeout",
        "_unbound",
        "cause",
        "highest_id",
        "ids_left",
    )

    def __init__(self, *, max_inflight: int, timeout: float) -> None:
        self._max_inflight = max_inflight
        self._timeout = timeout
        self._next_id = self._end = 0
        """The id that is minted next, and the one after the last of its block."""
        self._blocks: tuple[range, ...] = ()
        """The blocks that follow: as ranges, since ids that wait would take room."""
        self.ids_left = 0
        """Ids that can be minted before another block is needed."""
        self.highest_id = 0
        """The highest id that was fed."""
        self._requests: dict[int, Request] = {}
        self._calls = 0
        """Requests of clients among them."""
        self._server_requests: dict[IdKey, ServerRequest] = {}
        self.cause: TrunklineError | None = None
        """Why it was closed: the first cause given."""
        self._unbound = 0
        """Open server requests without an origin: any call may be waiting for them."""

    def __repr__(self) -> str:
        return f"Demux({len(self._requests)} requests, {len(self._server_requests)} server requests)"

    @property
    def inflight(self) -> int:
        """Requests that wait for an answer; tombstones are not among them."""
        return sum(request.state == "pending" for request in self._requests.values())

    @property
    def load(self) -> int:
        """Calls that count against `max_inflight`, tombstones among them."""
        return self._calls

    @property
    def is_idle(self) -> bool:
        """True when nothing is owed in either direction, tombstones included."""
        return not self._requests and not self._server_requests

    def feed(self, block: range) -> None:
        """Add a block of ids, one after the other, to be used after those that are left.

        Raises:
            ValueError: no ids at all, or some that are not positive or reach 2**53.
        """
        if block.start < 1 or block.stop > 2**53 or not block:
            raise ValueError(f"ids must lie in [1, 2**53), not in {block}")
        if self.ids_left:
            self._blocks = (*self._blocks, block)
        else:
            self._next_id, self._end = block.start, block.stop
        self.ids_left += len(block)
        self.highest_id = max(self.highest_id, block.stop - 1)

    def open(self, message: Envelope, caller: Caller, now: float) -> tuple[Request, bytes]:
        """Mint an id (and a progress token, where one is asked for) and write the message for the server.

        Raises:
            Overloaded: the limit on calls in flight, or no id is left.
            InvalidParams: an illegal progress token.
            TrunklineError: the channel is closed; its cause.
        """
        if self.cause is not None:
            raise self.cause
        is_own = caller.is_own
        if (len(self._requests) - self._calls > self._max_inflight) if is_own else self._calls >= self._max_inflight:
            raise Overloaded("too many calls in flight on this session", limit="max_inflight_per_channel")
        if not self.ids_left:
            raise Overloaded("no request id is left on this session", limit="upstream_ids")
        number = self._next_id
        self._next_id += 1
        self.ids_left -= 1
        if self._next_id == self._end and self._blocks:
            self._next_id, self._end = self._blocks[0].start, self._blocks[0].stop
            self._blocks = self._blocks[1:]
        spelled = b"%d" % number
        members = message.members
        params = members.get("params")
        token = b""
        if params is not None:
            swapped, token = wire_format.swap_progress_token(params, spelled)
            if token and wire_format.begins_task(params):
                swapped, _ = wire_format.swap_progress_token(params, wire_format.lasting_token(number, token))
            if swapped is not params:
                members = {**members, "params": swapped}
        request = Request(number, message.id, token, caller, now, self._timeout)
        self._requests[number] = request
        self._calls += not is_own
        return request, wire_format.with_id(members, spelled)

    def trim(self) -> None:
        """Give back what the tables once needed: an empty one that was used keeps its room."""
        if self.is_idle:
            self._requests, self._server_requests = {}, {}

    def find(self, caller: Caller) -> Request | None:
        """The request of this caller that waits for an answer."""
        return next((r for r in self._requests.values() if r.caller is caller and r.state == "pending"), None)

    def named(self, id: bytes) -> Request | None:
        """The request that a server means by this raw id."""
        return self._requests.get(minted(id))

    def cancel(self, request: Request, params: wire_format.Members | None, now: float) -> list[Due]:
        """The caller withdraws its request: tell the server, answer the caller, keep a tombstone (rules E12-E16).

        `params` are those of the client's notification; all but `requestId` go on as they are.
        """
        if self._step(request, "cancel") == "ignore":
            return []
        return self._withdraw(request, Cancelled("Request cancelled"), params, now)

    def withdraw(self, owner: Owner, cause: TrunklineError, now: float) -> list[Due]:
        """A workflow has ended for this cause: withdraw all that it asked for, as its client's cancellation would."""
        due: list[Due] = []
        for request in [r for r in self._requests.values() if r.state == "pending" and r.caller.owner is owner]:
            self._step(request, "cancel")
            due += self._withdraw(request, _as_lost(cause), None, now)
        return due

    def fail(self, request: Request, error: TrunklineError) -> list[Due]:
        """The exchange that carried this request upstream is over, without its answer."""
        if self._step(request, "fail") != "report":
            return []
        return [Failed(request, error)]

    def receive(self, message: Envelope, origin: Request | None, now: float) -> FromServer:
        """Take one message of the server; `origin` is the request on whose stream it came, where there is one."""
        if message.kind == "response":
            return self._receive_response(message, origin)
        if message.kind == "request":
            return self._receive_request(message, origin, now)
        if message.method == "notifications/progress":
            return self._receive_progress(message, origin, now)
        if message.method == "notifications/cancelled":
            return self._receive_cancel(message, now)
        return Told(message, origin)

    def respond(self, request: ServerRequest, message: Envelope, now: float) -> list[Due]:
        """A client's answer to what the server asked, under the server's own id. First answer wins (rule R4)."""
        if self._close_server_request(request, "answer", now) == "ignore":
            return []
        return [ToServer(message.with_id(request.id), "response")]

    def refuse(self, request: ServerRequest, error: TrunklineError, now: float) -> list[Due]:
        """No client will answer this: tell the server, so that its handler does not hang (rule R4)."""
        if self._close_server_request(request, "refuse", now) == "ignore":
            return []
        return [ToServer(wire_format.failure(request.id, error), "response")]

    def expire(self, now: float) -> list[Due]:
        """Time out what is due: calls, tombstones, and requests of the server that nobody answered."""
        due: list[Due] = []
        for request in [r for r in self._requests.values() if self._is_due(r, now)]:
            if self._step(request, "expire") == "time_out":
                error = TimedOut("the server gave neither answer nor progress in time; the call may have run")
                error.data["executed"] = "unknown"
                due += self._withdraw(request, error, None, now)
            else:
                due.append(Abandon(request))
        for asked in [s for s in self._server_requests.values() if s.deadline <= now]:
            due += self.refuse(asked, TimedOut("no client answered in time"), now)
            due.append(Retracted(asked, _void(asked)))
        return due

    def close(self, cause: TrunklineError) -> list[Failed]:
        """End everything: every caller hears of the cause. The first cause wins; a second close does nothing."""
        if self.cause is not None:
            return []
        self.cause = cause
        waiting = [request for request in self._requests.values() if request.state == "pending"]
        for request in list(self._requests.values()):
            self._step(request, "fail")
        for asked in self._server_requests.values():
            asked.state = "done"
        self._server_requests.clear()
        lost, not_run = _as_lost(cause), SessionLost(cause.message, executed="no")
        return [Failed(request, not_run if request.is_held else lost) for request in waiting]

    def _receive_response(self, message: Envelope, origin: Request | None) -> Answered | Ignored:
        request = self._requests.get(minted(message.id)) if message.id else origin
        if request is None or request.state == "done":
            return Ignored("unknown_response")
        if self._step(request, "answer") == "swallow":
            return Ignored("late_response", request)
        return Answered(request, message.answer_to(request.client_id), message.is_error)

    def _receive_request(self, message: Envelope, origin: Request | None, now: float) -> ToServer | Asked | Ignored:
        if message.method == "ping":
            return ToServer(wire_format.result(message.id, Raw(b"{}")), "response")
        key = id_key(message.id)
        if key in self._server_requests:
            return Ignored("duplicate_server_id")
        if len(self._server_requests) >= MAX_SERVER_REQUESTS:
            refusal = Overloaded("too many requests of this server wait for an answer", limit="server_requests")
            return ToServer(wire_format.failure(message.id, refusal), "response")
        if origin is not None and origin.state != "pending":
            origin = None
        asked = ServerRequest(message, origin, now + self._timeout * EXTENSIONS)
        self._server_requests[key] = asked
        if origin is None:
            self._unbound += 1
        else:
            origin.paused += 1
        return Asked(asked, message)

    def _receive_progress(self, message: Envelope, origin: Request | None, now: float) -> Progressed | Told | Ignored:
        params = message.params() or {}
        raw, token = params.get("progressToken", Raw(b"")), b""
        number = minted(bytes(raw))
        if not number:
            number, token = wire_format.read_lasting_token(raw)
        request = self._requests.get(number)
        if request is None and token:  # a task goes on whose call was answered
            if origin is not None and origin.state == "pending":
                origin.deadline = now + self._timeout
            told = {**params, "progressToken": Raw(token)}
            members = {**message.members, "params": wire_format.encode_members(told)}
            return Told(Envelope("notification", members, method=message.method), origin)
        if request is None or not request.token or self._step(request, "progress") == "ignore":
            return Ignored("unknown_progress")
        request.deadline = now + self._timeout
        return Progressed(request, message.with_params({**params, "progressToken": Raw(request.token)}))

    def _receive_cancel(self, message: Envelope, now: float) -> Retracted | Ignored:
        key = key_or_none((message.params() or {}).get("requestId"))
        asked = None if key is None else self._server_requests.get(key)
        if asked is None:
            return Ignored("unknown_cancel")
        self._close_server_request(asked, "cancel", now)
        return Retracted(asked, message)

    def _withdraw(
        self, request: Request, error: TrunklineError, params: wire_format.Members | None, now: float
    ) -> list[Due]:
        request.deadline = now + TOMBSTONE_SECONDS
        if request.is_held:
            not_run = SessionLost(error.message, executed="no") if isinstance(error, SessionLost) else error
            return [Failed(request, not_run)]
        told = {**(params or {}), "requestId": Raw(b"%d" % request.id)}
        return [
            ToServer(wire_format.notification("notifications/cancelled", told), "notification"),
            Failed(request, error),
        ]

    def _is_due(self, request: Request, now: float) -> bool:
        if request.state == "abandoned":
            return request.deadline <= now
        waits_for_client = request.paused or self._unbound
        return request.latest <= now or (request.deadline <= now and not waits_for_client)

    def _step(self, request: Request, input: RequestInput) -> RequestEffect:
        """The one door through which a request changes its state."""
        try:
            request.state, effect = REQUESTS[request.state, input]
        except KeyError:
            raise IllegalMove(f"{request!r} cannot take {input!r}") from None
        if request.state == "done" and self._requests.pop(request.id, None) is not None:
            self._calls -= not request.caller.is_own
        return effect

    def _close_server_request(self, asked: ServerRequest, input: ServerRequestInput, now: float) -> ServerRequestEffect:
        """The one door through which a request of the server changes its state."""
        try:
            asked.state, effect = SERVER_REQUESTS[asked.state, input]
        except KeyError:
            raise IllegalMove(f"{asked!r} cannot take {input!r}") from None
        if effect == "ignore":
            return effect
        del self._server_requests[id_key(asked.id)]
        if asked.origin is None:
            self._unbound -= 1
        else:
            asked.origin.paused -= 1
        for request in self._requests.values() if asked.origin is None else (asked.origin,):
            if request.state == "pending":
                request.deadline = max(request.deadline, now + self._timeout)
        return effect


def _void(asked: ServerRequest) -> Envelope:
    """What tells a client that nobody waits for its answer any longer."""
    params = {"requestId": Raw(asked.id), "reason": "timed out"}
    return wire_format.parse(wire_format.notification("notifications/cancelled", params), limit=MAX_EVENT_BYTES)


def _as_lost(cause: TrunklineError) -> TrunklineError:
    """What the callers of a channel that ended are told."""
    if isinstance(cause, SessionLost):
        return SessionLost(cause.message, executed="unknown")
    lost = SessionLost(f"the upstream session ended: {cause.message}", executed="unknown")
    lost.__cause__ = cause
    return lost
