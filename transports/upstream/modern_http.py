"""A server that speaks 2026-07-28 over HTTP: every request is a POST of its own, and what comes back belongs to it.

Nothing is kept between two requests but what the server was found to speak. A request is never sent a second time
(rule H6); cutting its exchange is its cancellation (rule E13).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from ...mux import modern
from ...mux.envelope import Envelope
from ...mux.errors import TrunklineError, UpstreamUnreachable
from ...mux.limits import MAX_EVENT_BYTES
from ...mux.mending import parse_served
from ...mux.ports import Headers
from ...mux.routing import LEGACY
from ...mux.statistics import Statistics
from ..event_stream import EventParser
from ..media import STREAM_TYPE, content_type
from ..unfinished import Unfinished
from .answers import Body, lingering, nothing
from .backoff import Backoff
from .http import ExchangeBroken, HeaderBlock, HTTPClient, words_of_status
from .http_call import failure_of
from .modern_passage import Passage

logger = logging.getLogger(__name__)

PROBE_SECONDS: Final = 10.0
"""How long a server may take to answer the probe; the SDK's clients wait as long."""

LEGACY_SECONDS: Final = 300.0
"""How long a server is taken to speak sessions only, before it is asked again: it may have been replaced."""

MAX_KEPT: Final = 256
MAX_KEPT_HEADERS: Final = 1024
"""So many header blocks of at most so many bytes are kept, checked and encoded."""


class ModernHTTPServer:
    """The requests of this era to one server, by its HTTP client. `headers` go with every one of them.

    `timeout` is in seconds: how long a request waits for its answer, or for progress. Of what the server speaks,
    clients hear of what is among `offers`.
    """

    def __init__(
        self,
        server: str,
        http: HTTPClient,
        headers: HeaderBlock,
        statistics: Statistics,
        *,
        timeout: float,
        offers: Collection[str] = (*LEGACY, *modern.REVISIONS),
        unfinished: Unfinished | None = None,
    ) -> None:
        self.server = server
        self.timeout = timeout
        self.offers = offers
        self.statistics = statistics
        self.unfinished = unfinished or Unfinished()
        """What answers count to before they are complete."""
        self.lingering = lingering()
        self._http = http
        self._headers = headers
        self._revisions: tuple[str, ...] | None = None
        self._known_until = 0.0
        self._backoff = Backoff()
        """Of probes, while what the server spoke still holds."""
        self._blocks: dict[tuple[tuple[str, str], ...], HeaderBlock] = {}
        self._probe: _Probe | None = None
        self._is_stopped = False

    @property
    def known(self) -> tuple[str, ...]:
        """The revisions of ours that it is known to speak; none where it is to be asked."""
        if self._revisions is None or asyncio.get_running_loop().time() >= self._known_until:
            return ()
        return self._revisions

    async def revisions(self) -> tuple[str, ...]:
        """The revisions of ours that the server speaks: asked once, and again when a request has failed.

        Where it then gives no answer that tells, what it was known to speak still holds, and it is asked ever later.

        Raises:
            UpstreamUnreachable: it never gave one.
            TrunklineError: what `stop` was told.
        """
        now = asyncio.get_running_loop().time()
        if self._revisions is None or (now >= self._known_until and not self._backoff.wait(now)):
            if self._probe is None:
                self._probe = self._ask()
            try:
                return self._offered(await asyncio.shield(self._probe.verdict))
            except UpstreamUnreachable:
                if self._revisions is None or self._is_stopped:
                    raise
        return self._revisions

    def forget(self) -> None:
        """Something failed: what the server speaks is asked again when it is needed."""
        self._known_until = 0.0

    def doubt_sessions(self) -> None:
        """A session did not open: a server that was found to speak sessions alone may have given them up."""
        if self._revisions is not None and not modern.is_spoken(self._revisions):
            self.forget()

    def send(self, message: Envelope, body: bytes, headers: Headers) -> Passage:
        """Put one request on its way.

        Raises:
            ValueError: a header that cannot be sent.
        """
        block = self._block(headers)
        passage = Passage(self, message)
        self.statistics.count("upstream_requests", self.server, "call")
        passage.cut = self._http.send("POST", block, body, passage)
        return passage

    def rotate(self, headers: Headers) -> None:
        """See `RotatingConnector.rotate`."""
        self._headers = self._headers.with_(headers)
        self._blocks.clear()

    def stop(self, error: TrunklineError) -> None:
        """No request follows: whoever waits to hear what the server speaks is told this."""
        self._is_stopped = True
        if self._probe is not None:
            self._probe.fail(error)

    def _block(self, headers: Headers) -> HeaderBlock:
        """The headers of a request. Most requests resemble one before; what is kept for that is bounded."""
        key = tuple(headers.items())
        block = self._blocks.get(key)
        if block is None:
            block = self._headers.with_(headers)
            if len(block.encoded) <= MAX_KEPT_HEADERS:
                if len(self._blocks) >= MAX_KEPT:
                    self._blocks.clear()
                self._blocks[key] = block
        return block

    def _ask(self) -> _Probe:
        body, headers = modern.probe()
        probe = _Probe()
        probe.verdict.add_done_callback(partial(self._learn, asyncio.get_running_loop().time()))
        self.statistics.count("upstream_requests", self.server, "probe")
        probe.cut = self._http.send("POST", self._headers.with_(headers), body, probe)
        return probe

    def _offered(self, spoken: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(revision for revision in spoken if revision in self.offers)

    def _learn(self, began: float, verdict: asyncio.Future[tuple[str, ...]]) -> None:
        self._probe = None
        now = asyncio.get_running_loop().time()
        if verdict.exception() is None:
            self._backoff.succeeded(began)
            self._revisions = self._offered(verdict.result())
            kept = float("inf") if modern.is_spoken(self._revisions) else LEGACY_SECONDS
            self._known_until = now + kept
            logger.info("speaks %s", ", ".join(verdict.result()), extra={"server": self.server})
        elif self._revisions is not None:
            self._backoff.failed(began, now)


class _Probe:
    """The answer to the probe. Implements `Answer`. Whoever waits for the verdict may leave; it goes on."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.cut: Callable[[], None] = nothing
        self.verdict: asyncio.Future[tuple[str, ...]] = loop.create_future()
        self._status = 0
        self._body = Body(MAX_EVENT_BYTES)
        self._events: EventParser | None = None
        late = UpstreamUnreachable(f"the server did not say within {PROBE_SECONDS:g} s what it speaks", executed="no")
        self._patience = loop.call_later(PROBE_SECONDS, partial(self.fail, late))

    def fail(self, error: TrunklineError) -> None:
        """There is no verdict, and why."""
        if not self.verdict.done():
            self.verdict.set_exception(error)
            self.verdict.exception()  # nobody may be waiting any longer
        self._end()

    def began(self, status: int, headers: Headers) -> None:
        """See `Answer.began`."""
        self._status = status
        if status == 200 and content_type(headers) == STREAM_TYPE:
            self._events = EventParser(limit=MAX_EVENT_BYTES)

    def came(self, chunk: bytes) -> None:
        """See `Answer.came`."""
        try:
            if self._events is None:
                self._body.add(chunk)
                return
            for event in self._events.feed(chunk):
                is_message = event.data and event.name == "message"
                message = parse_served(event.data) if is_message else None
                if message is not None and message.kind == "response":
                    self._judge(message)
        except TrunklineError:
            self._judge(None)

    def ended(self, error: ExchangeBroken | None) -> None:
        """See `Answer.ended`. A network error is no verdict; what waits for one was not sent in any case."""
        if error is not None:
            self.fail(failure_of(error, may_run=False))
            return
        try:
            message = parse_served(self._body.joined())
            self._judge(message if message.kind == "response" else None)
        except TrunklineError:
            self._judge(None)

    def _judge(self, answer: Envelope | None) -> None:
        revisions = modern.revisions_of(self._status, answer)
        if revisions is None:
            self.fail(UpstreamUnreachable(words_of_status(self._status), executed="no"))
        elif not self.verdict.done():
            self.verdict.set_result(revisions)
        self._end()

    def _end(self) -> None:
        self._patience.cancel()
        self.cut()
        self.cut = nothing  # which leads here, and the verdict to who waited for it
