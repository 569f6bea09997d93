"""The upstream sessions of one worker of ContextForge: found or opened for each call, kept, ended."""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from ...mux.directory.memory import MemoryDirectory
from ...mux.errors import Overloaded, SessionLost, TrunklineError, UnknownServer, WorkflowEnded
from ...mux.lease import ask, tell
from ...mux.own import own_request
from ...mux.pool import Arrival, Pool
from ...mux.ports import Headers
from ...mux.principal import Principal
from ...mux.statistics import Statistics
from ...mux.streams import Reader
from ...mux.upstream import Upstream
from ...mux.workflow import Workflow
from ...transports.upstream.http import ABSENT
from .asked import Asked
from .gateways import Gateways, MakeContext, ReadRecord, opening_headers
from .settings import ContextForgeSettings

logger = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 2.0
"""How often the records of servers in use are looked at, beside the calls."""

MAX_ENDED: Final = 16
"""Sessions that have ended of which it is remembered why. ContextForge has no page that would tell."""

UNUSED_SECONDS: Final = 60.0
"""Where there is no room, a session that no call has used for so long gives way."""

NOT_FORWARDED: Final = frozenset(
    {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding"}
    | {"last-event-id", "mcp-protocol-version", "mcp-session-id", "x-mcp-session-id"}
)
"""What a wire says itself, and what names ContextForge's own sessions."""


MAX_HEADER_NAMES: Final = 256
"""Names of headers that the calls to one server may come with; one with more goes the old path."""


class Name(NamedTuple):
    """What tells sessions apart: those of another generation of a server's settings are others."""

    principal: Principal
    server: str
    generation: int
    session: str
    """The client's."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a server says beside its answers, and in which session."""

    gateway_id: str
    url: str
    session: str
    """See `Asked.session_id`."""
    message: bytes


Hear = Callable[[Told], None]


@dataclass(slots=True)
class _Held:
    """An upstream session that is kept."""

    workflow: Workflow
    reader: Reader
    used: float
    """When a call last came for it."""


class OldPath(Exception):
    """A call is left to ContextForge's own code."""


class NoRoom(OldPath):
    """No more sessions are kept, and none gives way."""


class Reuse:
    """All upstream sessions of this worker, between `start` and `stop`."""

    def __init__(
        self,
        settings: ContextForgeSettings,
        read_record: ReadRecord,
        *,
        verifies_tls: bool,
        trusted: MakeContext = ssl.create_default_context,
        hear: Hear | None = None,
    ) -> None:
        self.settings = settings
        self._hear = hear
        self.statistics = Statistics()
        self.pool = Pool(
            {},
            MemoryDirectory(remembered_keys=0),  # no client's session comes again
            pooling=settings.pooling(settings.reuse),
            statistics=self.statistics,
            release=self._release,
            max_ended=MAX_ENDED,
        )
        self.gateways = Gateways(
            read_record, settings, self.statistics, self._reconfigure, verifies_tls=verifies_tls, trusted=trusted
        )
        self._held: dict[Name, _Held] = {}
        self._seen: dict[str, set[Name]] = {}
        """Those of each client session, also while they are opened: one that is missing then was ended meanwhile."""
        self._opening: dict[Name, asyncio.Task[_Held]] = {}
        """Handshakes under way. No caller's leaving cuts one: it would be lost."""
        self._header_names: dict[int, set[str]] = {}
        """By generation, those that calls came with: a session is opened under those of one of them."""
        self._ending: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    @property
    def is_running(self) -> bool:
        """True while calls are taken."""
        return self._keeper is not None and not self._keeper.done() and not self.pool.draining

    async def start(self) -> None:
        """Begin; a task of its own holds everything. Idempotent; once stopped, calls go the old path."""
        if self._keeper is None and not self.pool.has_begun:
            ready = asyncio.Event()
            self._keeper = asyncio.create_task(self._keep(ready))
            await ready.wait()

    async def stop(self, timeout: float = 5.0) -> None:
        """Let calls end, at most `timeout` seconds, then end every session at its server. Idempotent."""
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            await self.pool.drain(timeout)
            self._stopping.set()
            await keeper

    async def lease(
        self,
        asked: Asked,
        gateway_id: str,
        url: str,
        headers: Headers,
        handshake: Mapping[str, Any],
        *,
        taken: Callable[[], None] = lambda: None,
        may_renew: bool = True,
    ) -> "Lease":
        """The upstream session for one call, opened if need be with this `handshake` (the params of initialize).

        `taken` is called once the call is trunkline's, before the server is waited for; where that shows that it cannot
        be, the call is left to ContextForge nevertheless. With `may_renew`, a session is opened once more where the
        record was edited meanwhile.

        Raises:
            OldPath: the call is not for trunkline; why was counted.
            TrunklineError: the server cannot be reached, or refused.
        """
        try:
            upstream = self.gateways.find(gateway_id, url) if self.is_running else None
        except (OSError, ValueError):  # the stock client says what is wrong with it
            upstream = None
        headers = {name: value for name, value in headers.items() if name.lower() not in NOT_FORWARDED}
        names = self._header_names.setdefault(upstream.generation, set()) if upstream is not None else set()
        is_named = len(names | {name.lower() for name in headers}) <= MAX_HEADER_NAMES
        if upstream is None or not is_named or not asked.may_share(upstream.pooling.reuse):
            self.statistics.count("pool_requests", upstream.name if upstream else "", "bypass")
            raise OldPath
        taken()
        names.update(name.lower() for name in headers)
        name = Name(asked.principal, upstream.name, upstream.generation, asked.session)
        hear = partial(self._note, gateway_id, url, asked.session_id)
        held = self._held.get(name)
        renew = partial(self.lease, asked, gateway_id, url, headers, handshake)
        if held is None or held.workflow.ended is not None:
            try:
                held = await self._opened(name, partial(self._open, name, hear, headers, handshake))
            except (UnknownServer, WorkflowEnded) as ended:
                if isinstance(ended, WorkflowEnded) and ended.cause != "reconfigured":
                    raise
                if may_renew:  # the record was edited while a session was opened by what it said before
                    return await renew(may_renew=False)
                self.statistics.count("pool_requests", upstream.name, "bypass")
                raise OldPath from ended
        held.used = self.pool.now()
        opening_headers.set(headers)
        return Lease(held.workflow, headers, names, hear=hear, renew=renew)

    async def end(self, session: str) -> None:
        """The client's session is over: what was open for it is ended."""
        for name in self._seen.pop(session, ()):
            held = self._held.pop(name, None)
            if held is not None:
                await self._end(held, "client_left")

    async def _end(self, held: _Held, cause: str) -> None:
        held.reader.close()
        await self.pool.end(held.workflow, cause)

    async def _give_way(self, principal: Principal) -> None:
        """End the session that was unused for longest: one of this user's, else of anybody's. None in use is ended."""
        due = self.pool.now() - UNUSED_SECONDS
        unused = [(name, held) for name, held in self._held.items() if held.used <= due and not held.workflow.inflight]
        own = [entry for entry in unused if entry[0].principal == principal]
        if own or unused:
            name, held = min(own or unused, key=lambda entry: entry[1].used)
            self._forget(name)
            await self._end(held, "evicted")

    def _forget(self, name: Name) -> None:
        """Nothing is kept under this name any longer."""
        self._held.pop(name, None)
        names = self._seen.get(name.session, set())
        names.discard(name)
        if not names:
            self._seen.pop(name.session, None)

    def _note(self, gateway_id: str, url: str, session: str, message: bytes) -> None:
        if self._hear is not None:
            self._hear(Told(gateway_id, url, session, message))

    async def _opened(self, name: Name, begin: Callable[[], Coroutine[Any, Any, _Held]]) -> _Held:
        """Open a session in a task of its own, once for all calls that meet here."""
        opening = self._opening.get(name)
        if opening is None:
            opening = self._opening[name] = asyncio.create_task(begin())

            def done(task: asyncio.Task[_Held]) -> None:
                self._opening.pop(name, None)
                task.cancelled() or task.exception()  # who has left does not ask how it ended

            opening.add_done_callback(done)
        return await asyncio.shield(opening)

    async def _open(
        self, name: Name, hear: Callable[[bytes], None], headers: Headers, handshake: Mapping[str, Any]
    ) -> _Held:
        self._held.pop(name, None)  # it has ended
        self._seen.setdefault(name.session, set()).add(name)
        try:
            workflow = await self._begin(name, headers, handshake)
        except BaseException:
            self._forget(name)
            raise
        is_left = name not in self._seen.get(name.session, ())
        if is_left or workflow.is_superseded:
            self._forget(name)
            cause = "client_left" if is_left else "reconfigured"
            await self.pool.end(workflow, cause)
            raise WorkflowEnded(cause)
        reader = workflow.streams.attach_standalone()
        reader.on_wake = partial(_read, reader, hear)
        held = self._held[name] = _Held(workflow, reader, self.pool.now())
        return held

    async def _begin(self, name: Name, headers: Headers, handshake: Mapping[str, Any]) -> Workflow:
        opening_headers.set(headers)
        message = own_request("initialize", handshake)
        arrival = Arrival(key=f"{name.generation}:{name.session}")
        try:
            try:
                return (await self.pool.begin(name.principal, name.server, message, arrival)).workflow
            except Overloaded:
                await self._give_way(name.principal)
                return (await self.pool.begin(name.principal, name.server, message, arrival)).workflow
        except Overloaded as error:
            logger.warning("no more sessions are kept: %s", error.message)
            self.statistics.count("pool_requests", name.server, "bypass")
            raise NoRoom from error
        except TrunklineError as error:
            if error.data.get("status") in range(300, 400):  # the stock client follows redirections
                raise OldPath from error
            raise

    def _reconfigure(self, upstreams: Mapping[str, Upstream]) -> None:
        self.pool.reconfigure(upstreams, self.pool.pooling)
        for workflow in self.pool.workflows:
            if workflow.is_superseded and workflow.opened.done():  # one that is being opened would be lost
                self._end_after(workflow.calls.drain(), workflow)

    async def _release(self, upstream: Upstream) -> None:
        self._header_names.pop(upstream.generation, None)
        await self.gateways.release(upstream)

    def _end_after(self, over: asyncio.Event, workflow: Workflow) -> None:
        async def end() -> None:
            await over.wait()
            await self.pool.end(workflow, "reconfigured")

        task = asyncio.get_running_loop().create_task(end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _keep(self, ready: asyncio.Event) -> None:
        async with self.pool.running():
            ready.set()
            while not self._stopping.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), REFRESH_SECONDS)
                await self._sweep()
            for opening in self._opening.values():
                opening.cancel()
            await asyncio.gather(*self._opening.values(), return_exceptions=True)
        await self.gateways.close()

    async def _sweep(self) -> None:
        due = self.pool.now() - self.settings.idle_timeout
        for name, held in list(self._held.items()):
            is_idle = held.used <= due and not held.workflow.inflight
            if is_idle or held.workflow.ended is not None:
                self._forget(name)
                await self._end(held, "idle")
        try:
            await self.gateways.refresh()
        except Exception:
            logger.exception("the records of servers could not be read")


def _read(reader: Reader, hear: Callable[[bytes], None]) -> None:
    """Take what the server says in no call's course; without it, the log would fill."""
    for event in reader.due() or ():
        if event.message:
            hear(event.message)


class Lease:
    """One call's use of an upstream session. It goes without those headers of `names` that it has not itself."""

    def __init__(
        self,
        workflow: Workflow,
        headers: Headers,
        names: Collection[str],
        *,
        hear: Callable[[bytes], None],
        renew: Callable[[], Awaitable["Lease"]],
    ) -> None:
        self.workflow = workflow
        self._own = headers
        self._names = names
        self._hear = hear
        self._renew = renew

    @property
    def _headers(self) -> Headers:
        """Its own, and none of those under which the session was opened."""
        own = {name.lower() for name in self._own}
        return {**{name: ABSENT for name in self._names if name not in own}, **self._own}

    @property
    def initialize_result(self) -> Any:
        """What the server said of itself."""
        return msgspec.json.decode(self.workflow.record.result)

    async def request(self, method: str, params: Any) -> dict[str, Any]:
        """Send one request and return the server's response, an object with `result` or `error`.

        Where the server has forgotten the session and the request surely did not run, it is sent once more in a new
        one, as the old path would do. Where the caller is cancelled, the server is told (rule E12).

        Raises:
            TrunklineError: there is no response of the server's, or a new session was needed and could not be opened.
        """
        try:
            return await ask(self.workflow, method, params, self._headers, self._hear)
        except SessionLost as lost:
            if lost.data["executed"] != "no":
                raise
            try:
                self.workflow = (await self._renew()).workflow
            except OldPath:
                raise lost from None
            return await ask(self.workflow, method, params, self._headers, self._hear)

    def notify(self, method: str, params: Any) -> None:
        """Send one notification."""
        tell(self.workflow, method, params, self._headers)
