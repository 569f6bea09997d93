"""The answer to one request over Streamable HTTP: JSON, a stream of its own, or a refusal (rules T6, E8, R1.1)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ...mux.envelope import parse
from ...mux.errors import (
    CredentialRefused,
    InvalidMessage,
    SessionLost,
    TrunklineError,
    UpstreamFault,
    UpstreamUnreachable,
)
from ...mux.limits import MAX_EVENT_BYTES
from ...mux.ports import Headers
from ...mux.request import Request
from ..media import JSON_TYPE, STREAM_TYPE, content_type
from ..patience import Waiting
from .answers import ERROR_BODY_BYTES, Body, Events, forgets_session
from .http import CredentialFailed, ExchangeBroken, words_of_status

if TYPE_CHECKING:
    from .streamable_http import HTTPWire


class HTTPCall:
    """The answer to one request, as it comes: plain JSON, a stream, or a refusal. Implements `Answer`.

    What cuts its exchange leads to it: the wire alone has that, so that no call waits for the garbage collector.
    """

    __slots__ = ("_body", "_events", "_linger", "_request", "_status", "_wire")

    def __init__(self, wire: HTTPWire, request: Request) -> None:
        self._wire = wire
        self._request = request
        self._status = 0
        self._body: Body | None = None
        self._events: Events | None = None
        self._linger: Waiting | None = None

    def began(self, status: int, headers: Headers) -> None:
        """See `Answer.began`."""
        self._status = status
        kind = content_type(headers)
        try:
            if not self._wire.begins(self._request, status, headers):
                return
            if status == 200 and kind == STREAM_TYPE:
                self._events = Events(None, unfinished=self._wire.unfinished)
            elif status == 202:
                raise UpstreamFault("the server accepted a request without answering it")
            elif kind == JSON_TYPE or (status == 400 and self._wire.has_session):
                self._body = Body(MAX_EVENT_BYTES if status == 200 else ERROR_BODY_BYTES, self._wire.unfinished)
            else:
                raise refusal(status)
        except TrunklineError as error:
            self._leave(error)

    def came(self, chunk: bytes) -> None:
        """See `Answer.came`."""
        try:
            if self._body is not None:
                self._body.add(chunk)
            elif self._events is not None:
                for text in self._events.add(chunk):
                    self._hand_on(text)
        except UpstreamFault as fault:
            self._leave(fault if self._status == 200 else refusal(self._status))

    def ended(self, error: ExchangeBroken | None) -> None:
        """See `Answer.ended`."""
        request, wire = self._request, self._wire
        if self._linger is not None:
            self._linger.cancel()
        events, self._events = self._events, None
        if events is not None:
            if request.state == "done":
                wire.is_over(request)
            else:
                wire.take_up(request, events.anew())
        elif error is not None:
            wire.is_over(request, failure_of(error))
        elif self._body is not None:
            self._take(self._body.joined())

    def _take(self, text: bytes) -> None:
        """A body of JSON: the response, or an HTTP error that may hold one, with or without an id (rule E8)."""
        request = self._request
        if self._status == 400 and self._wire.has_session and forgets_session(text, b"%d" % request.id):
            self._wire.forgot(request)
            return
        if self._status == 200:
            self._wire.receiver.received(text, request)
        elif refused := _error_in(text, b"%d" % request.id):
            self._wire.receiver.received(refused, request)
        if request.state == "done":
            self._wire.is_over(request)
        elif self._status == 200:
            self._wire.is_over(request, UpstreamFault("the server's answer did not hold the response"))
        else:
            self._wire.is_over(request, refusal(self._status))

    def _hand_on(self, text: bytes) -> None:
        self._wire.receiver.received(text, self._request)
        if self._request.state == "done" and self._linger is None:
            self._linger = self._wire.lingering.begin(asyncio.get_running_loop(), self._leave)

    def _leave(self, error: TrunklineError | None = None) -> None:
        """Nothing more is needed of the exchange, for this reason where its answer did not come."""
        self._body = self._events = None
        self._wire.cut(self._request)
        self._wire.is_over(self._request, error)


def failure_of(error: ExchangeBroken, *, may_run: bool = True) -> TrunklineError:
    """The failure of an HTTP request: surely not executed if it was not sent, else unknown (guarantee G6).

    Where it executes nothing in any case, not `may_run`, the server cannot be reached.
    """
    if isinstance(error, CredentialFailed):
        return CredentialRefused(str(error))
    if error.sent and may_run:
        return SessionLost(f"the exchange with the server broke: {error}", executed="unknown")
    return UpstreamUnreachable(f"the server cannot be reached: {error}", executed="no")


def refusal(status: int) -> TrunklineError:
    """The failure of a request that was answered with this status, and nothing that says more."""
    executed = "no" if 400 <= status < 500 else "unknown"
    return UpstreamUnreachable(words_of_status(status), status=status, executed=executed)


def _error_in(text: bytes, id: bytes) -> bytes:
    """The JSON-RPC error that the body of an HTTP error is, of no other request than this one; empty where it is none.

    Servers of the Python SDK 1.x name `server-error` in place of an id.
    """
    try:
        message = parse(text, limit=ERROR_BODY_BYTES)
    except InvalidMessage:
        return b""
    if not message.is_error:
        return b""
    return message.with_id(id) if message.id else text
