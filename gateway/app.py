"""The composition root: the one place that builds everything, from settings to a gateway, and builds it anew."""

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Final, NamedTuple

import anyio
from anyio.abc import TaskGroup

from ..mux.directory import SharedDirectory
from ..mux.directory.memory import MemoryDirectory
from ..mux.directory.timed import timed
from ..mux.errors import Overloaded
from ..mux.pool import Pool
from ..mux.statistics import Statistics
from ..mux.upstream import Upstream
from ..transports.admission import Admission
from ..transports.asgi import ASGIApp, Receive, Scope, Send, WholeRequest
from ..transports.at_once import AtOnce, MessagesAtOnce, ModernAtOnce
from ..transports.endpoint import EndpointConfig
from ..transports.guard import Guard
from ..transports.modern import ModernEndpoint, ModernRequests
from ..transports.sse import SSEEndpoint
from ..transports.streamable_http import StreamableHTTPEndpoint
from ..transports.upstream.credentials import TokenSource
from ..transports.upstream.http_client import trusting
from ..transports.websocket import WebSocketEndpoint, not_found
from .auth import Authenticator
from .events import Events
from .metrics import gauges
from .oauth import sources_of
from .operations import Operations
from .reload import Changes, compare, renew
from .settings import Settings, SettingsError, check, is_loopback
from .site import Site, site_of
from .telemetry import tracing
from .tickets import TicketEndpoint
from .trends import Trends, until_step
from .worker_metrics import WorkerMetrics
from .workers.member import Member
from .workers.overview import Overview

logger = logging.getLogger(__name__)

PREFIX: Final = "/servers/"

MAX_LEAVING: Final = 256
"""Servers that were taken out, and of which only other workers may have workflows: before these, they are unknown."""


@dataclass(frozen=True, slots=True)
class _Routes:
    """All that a request may meet, built from one state of the settings: it meets all of one state, or of the next."""

    settings: Settings
    authenticator: Authenticator
    sites: Mapping[str, Site]
    leaving: Mapping[str, Site]
    """Servers that are gone from the settings, and still have workflows, or may have some at another worker."""
    http: Mapping[str, ASGIApp]
    at_once: Mapping[str, Callable[[WholeRequest], bool]]
    websocket: Mapping[str, ASGIApp]
    operations: ASGIApp


class _Built(NamedTuple):
    """What is to change, and what that needs: built beside the event loop, as it blocks."""

    changes: Changes
    sites: Mapping[str, Site]
    """Of the servers that are added or changed."""
    sources: Mapping[str, TokenSource]
    """Of tokens, for servers that are added or changed, or whose credentials are rotated."""


class Shared(NamedTuple):
    """What a gateway has in common with other workers."""

    directory: SharedDirectory
    """All that serve the same workflows have it, on any host."""
    runtime: Path
    """A directory that its processes on this host have to themselves."""


class Gateway:
    """A gateway that is built but not listening: an ASGI application and the pool behind it.

    It serves between entering and leaving `running`; beside other workers, where it shares a directory with them.
    """

    def __init__(self, settings: Settings, shared: Shared | None = None) -> None:
        self.statistics = Statistics()
        self._trends = Trends(self.statistics)
        self._tracer = tracing()
        self._admission = Admission()
        self._generation = 0
        """Of what is built next; counts the changes of settings, in this process."""
        sites = self._sites(settings, settings.servers, {}, sources_of(settings.servers))
        self._generation += 1
        self._open = {site.version: site for site in sites.values()}
        """Every site with something behind it, of any generation."""
        upstreams = {name: site.upstream for name, site in sites.items()}
        self._member: Member | None = None
        self._workers: WorkerMetrics | None = None
        self._enter: ASGIApp = self._serve
        directory = None
        if shared is not None:
            directory = timed(shared.directory, self.statistics)
            self._member = Member(
                self._serve,
                directory,
                shared.runtime,
                self.statistics,
                identify=lambda scope: self._routes.authenticator.identify(scope),
                on_lapse=self._lapse,
            )
            self._workers = WorkerMetrics(shared.runtime, self._member.id)
            self._enter = self._member.forwarder
        self.pool = Pool(
            upstreams,
            directory or timed(MemoryDirectory(), self.statistics),
            pooling=settings.pooling,
            statistics=self.statistics,
            release=self._release,
            members=self._member.membership if self._member is not None else None,
            shared=directory,
        )
        self._events = Events(self.pool, Overview(self.pool, self._trends, self._member, self._beside))
        self._routes = self._routed(settings, Authenticator(settings), sites, {})
        self._tasks: TaskGroup
        self._key_keeping = anyio.CancelScope()

    @property
    def settings(self) -> Settings:
        """What holds now."""
        return self._routes.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; in another worker, where that one holds what it is about."""
        await self._enter(scope, receive, send)

    def _serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one connection here: an MCP endpoint by its path, everything else by the operations application."""
        path, routes = scope.get("path", ""), self._routes
        if scope["type"] == "websocket":
            return routes.websocket.get(path, not_found)(scope, receive, send)
        return routes.http.get(path, routes.operations)(scope, receive, send)

    def take_at_once(self, whole: WholeRequest) -> bool:
        """Answer a request without a task, where this worker can; False where it has to be served as any other."""
        take = self._routes.at_once.get(whole.scope["path"])
        return take is not None and take(whole)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Gateway"]:
        """The gateway with its pool, for the length of the context."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._close)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(self._tasks.cancel_scope.cancel)
            self._tasks.start_soon(self._keep_trends)
            if self._routes.authenticator.jwt is not None:
                await self._routes.authenticator.jwt.keys.refresh()
            self._keep_keys(self._routes.authenticator)
            if self._member is not None:
                await stack.enter_async_context(self._member.running())
                self._routes.authenticator.tickets.worker = self._member.number
            await stack.enter_async_context(self.pool.running())
            if self._workers is not None:
                self._tasks.start_soon(self._workers.run, self.statistics, lambda: gauges(self.pool, self._beside))
            yield self

    async def drain(self, timeout: float) -> bool:
        """Take nothing new; wait until every call has ended, at most `timeout` seconds. True if none was cut (G8)."""
        complete: list[bool] = []

        async def drain(part: ModernRequests) -> None:
            complete.append(await part.drain(timeout))

        if self._member is not None:
            self._member.forwarder.drain()
        async with anyio.create_task_group() as tasks:
            for site in self._open.values():
                if site.modern is not None:
                    tasks.start_soon(drain, site.modern)
            complete.append(await self.pool.drain(timeout))
        return all(complete)

    async def leave(self, timeout: float) -> bool:
        """After `drain`: wait until other workers have answered what was handed on to them, at most `timeout` seconds.

        What takes longer is cut, and its clients are told. True if nothing was.
        """
        return await self._member.forwarder.leave(timeout) if self._member is not None else True

    def another_goes_on(self, *, of_another_parent: bool) -> bool:
        """See `Member.another_goes_on`."""
        return self._member is not None and self._member.another_goes_on(of_another_parent=of_another_parent)

    @property
    def is_relaying(self) -> bool:
        """True while answers of other workers to what was handed on to them are awaited."""
        return self._member is not None and self._member.forwarder.is_relaying

    # Settings that change.

    async def reload(self, read: Callable[[], Settings], *, insecure: bool = False) -> bool:
        """Read the settings again, and let hold what differs but for what needs a restart; a fault changes nothing.

        False where nothing changed: there is a fault, or the gateway shuts down. `read` and `insecure` as in
        `process.serve`. Not to be called again before it is done.
        """
        try:
            built = await anyio.to_thread.run_sync(self._rebuilt, read, insecure)
            authenticator = Authenticator(built.changes.settings, self._routes.authenticator)
            if authenticator.jwt is not None and authenticator.jwt is not self._routes.authenticator.jwt:
                await authenticator.jwt.keys.refresh()
        except SettingsError as error:
            self.statistics.count("reloads", "refused")
            logger.error("not reloaded, everything stays as it is: %s", error)
            return False
        except Exception as error:
            self.statistics.count("reloads", "refused")
            logger.error("not reloaded, everything stays as it is", exc_info=error)
            return False
        if self.pool.draining:
            logger.warning("not reloaded: the gateway is shutting down")
            return False
        self._apply(built, authenticator)
        self.statistics.count("reloads", "applied")
        logger.info("reloaded: %s", built.changes)
        if built.changes.needs_restart:
            waiting = ", ".join(built.changes.needs_restart)
            logger.warning("left as it was, only a restart changes it: %s", waiting)
        return True

    def _rebuilt(self, read: Callable[[], Settings], insecure: bool) -> _Built:
        """Everything that may fail of a reload; nothing of it holds yet.

        Raises:
            SettingsError: what was read cannot hold, or not beside what stays.
        """
        changes = compare(self.settings, read())
        check(changes.settings, insecure=insecure)
        before = {**self._routes.leaving, **self._routes.sites}
        differing = (*changes.added, *changes.changed, *changes.rotated)  # an added one may have been there before
        sources = sources_of({name: changes.settings.servers[name] for name in differing})
        sites = self._sites(changes.settings, (*changes.added, *changes.changed), before, sources)
        return _Built(changes, sites, sources)

    def _apply(self, built: _Built, authenticator: Authenticator) -> None:
        """Let other settings hold. Nothing else runs meanwhile: a request meets all of the old ones, or of the new."""
        before, changes, settings = self._routes, built.changes, built.changes.settings
        self._generation += 1
        self._open |= {site.version: site for site in built.sites.values()}
        self._rotate(settings, built.sources)
        sites = {name: built.sites.get(name) or self._open[before.sites[name].version] for name in settings.servers}
        gone = {name: before.sites[name] for name in (*changes.changed, *changes.removed)}
        busy = {workflow.server for workflow in self.pool.served}
        leaving = {
            name: site
            for name, site in {**before.leaving, **gone}.items()
            if name not in sites and "legacy" in site.server.eras
            if name in busy or self._member is not None  # another worker may hold what goes on
        }
        for name in [name for name in leaving if name not in busy][:-MAX_LEAVING]:
            del leaving[name]
        self._routes = self._routed(settings, authenticator, sites, leaving)
        self.pool.reconfigure({name: site.upstream for name, site in sites.items()}, settings.pooling)
        self.pool.revoke(authenticator.knows)
        before.authenticator.give_way(authenticator)
        if authenticator.jwt is not before.authenticator.jwt:
            self._keep_keys(authenticator)
        for name, site in gone.items():
            if site.modern is not None:
                site.modern.give_way(sites[name].modern if name in sites else None)
            self._tasks.start_soon(self._give_up, site)

    def _rotate(self, settings: Settings, sources: Mapping[str, TokenSource]) -> None:
        """Have whatever is open carry the credentials that hold by now, under whatever settings it was opened."""
        for version, site in self._open.items():
            server = settings.servers.get(version[0])
            if server is not None and (renewed := renew(site.server, server)) is not None:
                self._open[version] = site.rotate(renewed, sources.get(version[0]))

    async def _give_up(self, site: Site) -> None:
        """Close what leads to a server under settings that no longer hold, once nobody needs it."""
        if site.modern is not None:
            await site.modern.drain(inf)
        await site.released.wait()
        del self._open[site.version]
        try:
            await site.connector.close()
        except Exception:
            logger.exception("a connector could not be closed", extra={"server": site.upstream.name})

    async def _keep_trends(self) -> None:
        while True:
            await anyio.sleep(until_step(time.time()))
            self._trends.step(time.time())

    def _lapse(self, since: float) -> None:
        with suppress(Overloaded):  # the pool does not run (any longer), and holds nothing
            self.pool.lapse(since)

    async def _release(self, upstream: Upstream) -> None:
        self._open[upstream.name, upstream.generation].released.set()

    async def _close(self) -> None:
        """Close whatever leads to a server."""
        for site in self._open.values():
            await site.connector.close()

    def _keep_keys(self, authenticator: Authenticator) -> None:
        """Keep the keys of tokens fresh, and no longer those of before."""
        self._key_keeping.cancel()
        self._key_keeping = scope = anyio.CancelScope()

        async def keep() -> None:
            with scope:
                if authenticator.jwt is not None:
                    await authenticator.jwt.keys.run()

        self._tasks.start_soon(keep)

    # What things are made of.

    def _sites(
        self,
        settings: Settings,
        names: Collection[str],
        before: Mapping[str, Site],
        sources: Mapping[str, TokenSource],
    ) -> dict[str, Site]:
        """Servers under the settings that are to hold next.

        They share the system's certificates, which take a megabyte, and some 25 ms to be read.
        """
        build = partial(site_of, tracer=self._tracer, system=trusting("") if names else "")
        return {
            name: build(
                name, settings, self._generation, self.statistics, before=before.get(name), source=sources.get(name)
            )
            for name in names
        }

    def _routed(
        self,
        settings: Settings,
        authenticator: Authenticator,
        sites: Mapping[str, Site],
        leaving: Mapping[str, Site],
    ) -> _Routes:
        listener = settings.gateway
        guard = Guard(
            loopback=is_loopback(listener.host),
            allowed_hosts=listener.allowed_hosts,
            allowed_origins=listener.allowed_origins,
        )
        http: dict[str, ASGIApp] = {}
        at_once: dict[str, Callable[[WholeRequest], bool]] = {}
        websocket: dict[str, ASGIApp] = {}
        for name, site in {**leaving, **sites}.items():
            server, path = site.server, PREFIX + name
            config = EndpointConfig(
                server=name,
                pool=self.pool,
                guard=guard,
                authenticate=partial(authenticator.authenticate, server=name),
                anonymous_keys=is_loopback(listener.host),
                forward_headers=tuple(header.lower() for header in server.forward_headers),
                session_headers=tuple(header.lower() for header in server.session_headers),
                modern=site.modern if name in sites else None,
                tracer=self._tracer,
                generation=site.upstream.generation,
                connections=site.connections,
                admission=self._admission,
            )
            if "legacy" not in server.eras:
                if site.modern is not None:
                    http[f"{path}/mcp"] = ModernEndpoint(config, site.modern)
                    at_once[f"{path}/mcp"] = ModernAtOnce(config, site.modern).take
                continue
            streams = replace(config, authenticate=partial(authenticator.authenticate, server=name, tickets=True))
            sse = SSEEndpoint(config, streams)
            http[f"{path}/ticket"] = TicketEndpoint(config, authenticator.tickets)
            http[f"{path}/mcp"] = StreamableHTTPEndpoint(config)
            at_once[f"{path}/mcp"] = AtOnce(config).take
            http[f"{path}/sse"] = sse.stream
            http[f"{path}/message"] = sse.messages
            at_once[f"{path}/message"] = MessagesAtOnce(config).take
            websocket[f"{path}/ws"] = WebSocketEndpoint(streams)
        operations = Operations(
            self.pool,
            settings,
            guard,
            authenticator,
            self._events,
            beside=self._beside,
            member=self._member,
            workers=self._workers,
        )
        return _Routes(settings, authenticator, sites, leaving, http, at_once, websocket, operations)

    def _beside(self) -> Counter[str]:
        """Requests that are under way without a session, by server."""
        found = Counter[str]()
        for site in self._open.values():
            if site.modern is not None:
                found[site.upstream.name] += site.modern.inflight
        return found
