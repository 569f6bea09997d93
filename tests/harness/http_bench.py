"""The HTTP wire between a scripted server on a real socket and a channel that writes down what it hears."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from contract.session import REVISION, Receiver, Report, Session
from trunkline.mux.errors import SessionLost, TrunklineError
from trunkline.mux.ports import NONE
from trunkline.mux.request import Request
from trunkline.mux.statistics import Statistics
from trunkline.transports.upstream.streamable_http import StreamableHTTPConnector

from harness.upstream_scripted import Play, ScriptedUpstream


class Hearer(Receiver):
    """Hears what is no message, too, and does not judge it."""

    def received(self, text: bytes, origin: Request | None) -> None:
        """See `Receiver.received`."""
        try:
            super().received(text, origin)
        except (AttributeError, RecursionError, ValueError):
            self._report(Report("received", origin, text))


class Heard(Session):
    """A session, and what was heard of it."""

    receiver: Hearer

    def texts(self, request: Request | None) -> list[bytes]:
        """What came bound to a request, or to none, in order."""
        return [report.text for report in self.receiver.of("received") if report.request is request]

    async def heard(self, request: Request | None, count: int = 1) -> list[bytes]:
        """The same, once it is so much."""
        await self.receiver.until(lambda: len(self.texts(request)) >= count)
        return self.texts(request)

    async def failure(self, request: Request) -> TrunklineError:
        """Why a request failed, once it has."""

        def found() -> list[TrunklineError]:
            return [report.error for report in self.receiver.of("failed") if report.request is request and report.error]

        await self.receiver.until(found)
        return found()[0]

    async def lost(self) -> set[Request]:
        """The requests that surely did not run, once the session is lost."""
        await self.receiver.until(lambda: self.receiver.of("lost"))
        (report,) = self.receiver.of("lost")
        assert isinstance(report.error, SessionLost)
        return set(report.refused)


class HTTPBench:
    """A scripted server, and the connector to it."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.upstream = upstream
        self.statistics = Statistics()
        self.connector = StreamableHTTPConnector("x", upstream.url, self.statistics)

    def sent(self, kind: str) -> int:
        """Requests of a kind that were counted."""
        return self.statistics.total("upstream_requests", "x", kind)

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Heard]:
        """A session before its handshake."""
        receiver = Hearer()
        async with self.connector.connect(receiver, NONE, listen=True) as wire:
            yield Heard(wire, receiver)
        receiver.left = True

    @asynccontextmanager
    async def session(self, revision: str = REVISION) -> AsyncIterator[Heard]:
        """A session after its handshake."""
        async with self.wire() as session:
            await session.shake_hands(revision)
            yield session


@asynccontextmanager
async def http_bench(session: str = "upstream-session", **script: Sequence[Play]) -> AsyncIterator[HTTPBench]:
    """A bench for one test. `call` names `tools/call` in the script, `told` names `notifications/message`."""
    names = {"call": "tools/call", "told": "notifications/message"}
    async with ScriptedUpstream(
        {names.get(name, name): plays for name, plays in script.items()}, session=session
    ) as up:
        made = HTTPBench(up)
        try:
            yield made
        finally:
            await made.connector.close()
