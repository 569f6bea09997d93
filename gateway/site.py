"""One server as it is served: what its settings, of one generation, are made into."""

import asyncio
from dataclasses import dataclass, field, replace

from ..compat.per_request import PerRequestLine
from ..mux.generations import Version
from ..mux.modern import REVISIONS
from ..mux.ports import Line
from ..mux.routing import LEGACY
from ..mux.statistics import Statistics
from ..mux.upstream import ChannelMaker, Upstream
from ..transports.endpoint import Connections
from ..transports.modern import ModernRequests
from ..transports.tracing import Tracer
from ..transports.unfinished import Unfinished
from ..transports.upstream.auto import AutoConnector, RotatingConnector, connector_for
from ..transports.upstream.credentials import Credential, TokenSource
from ..transports.upstream.http_client import Trusted
from ..transports.upstream.modern_http import ModernHTTPServer
from .reload import place_of
from .settings import Server, Settings


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One server under one generation of its settings, and all that was built from them."""

    server: Server
    upstream: Upstream
    connector: RotatingConnector
    credential: Credential | None
    modern: ModernRequests | None
    modern_server: ModernHTTPServer | None
    connections: Connections
    unfinished: Unfinished
    """What the server has sent of large messages that are not complete, under whatever generation."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the pool has nothing open under these settings, after others have come to hold."""

    @property
    def version(self) -> Version:
        """The server's name, and the generation."""
        return self.upstream.name, self.upstream.generation

    def rotate(self, server: Server, source: TokenSource | None) -> "Site":
        """The same, with the credentials of these settings, and tokens from this source."""
        self.connector.rotate(server.headers)
        if self.modern_server is not None:
            self.modern_server.rotate(server.headers)
        if self.credential is not None and source is not None:
            self.credential.rotate(source)
        return replace(self, server=server)


def site_of(
    name: str,
    settings: Settings,
    generation: int,
    statistics: Statistics,
    *,
    tracer: Tracer | None,
    before: Site | None,
    source: TokenSource | None = None,
    system: Trusted = "",
) -> Site:
    """The server of that name, built from these settings; with the open connections of what was served `before`.

    What that counted of the server counts on. `source` is where the tokens come from that the settings ask for;
    `system` is what is trusted where they name no certificates.
    """
    server, pooling = settings.servers[name], settings.pooling_for(name)
    credential = None if source is None else Credential(name, source, statistics)
    unfinished = before.unfinished if before is not None else Unfinished()
    connector = connector_to(name, server, statistics, credential, unfinished, system)
    modern_server, modern = None, None
    if "modern" in server.eras and isinstance(connector, AutoConnector):
        streamable = connector.streamable
        modern_server = ModernHTTPServer(
            name,
            streamable.http,
            streamable.headers,
            statistics,
            timeout=pooling.request_timeout,
            offers=(*LEGACY, *REVISIONS) if "legacy" in server.eras else REVISIONS,
            unfinished=unfinished,
        )
        connector.when_unopened = modern_server.doubt_sessions
        modern = ModernRequests(
            name,
            modern_server,
            statistics,
            max_inflight=pooling.max_inflight_per_workflow,
            headers=tuple(header.lower() for header in (*server.forward_headers, *server.session_headers)),
            tracer=tracer,
        )
    upstream = _upstream(name, settings, generation, connector)
    connections = before.connections if before is not None else Connections()
    return Site(server, upstream, connector, credential, modern, modern_server, connections, unfinished)


def connector_to(
    name: str,
    server: Server,
    statistics: Statistics,
    credential: Credential | None,
    unfinished: Unfinished | None = None,
    system: Trusted = "",
) -> RotatingConnector:
    """What opens sessions with a server, by its settings and the credential that they ask for; `system` as above."""
    if server.process:
        return connector_for(name, statistics, command=server.process, env=server.env)
    return connector_for(
        name,
        statistics,
        url=server.url,
        headers=server.headers,
        ca=server.ca or system,
        credential=credential,
        unfinished=unfinished,
    )


def _upstream(name: str, settings: Settings, generation: int, connector: RotatingConnector) -> Upstream:
    server, pooling, habits = settings.servers[name], settings.pooling_for(name), settings.compat.sdk_habits

    def per_request(make_channel: ChannelMaker) -> Line:
        return PerRequestLine(make_channel, habits=habits)

    return Upstream(
        name=name,
        connector=connector,
        pooling=pooling,
        stateless=server.stateless,
        generation=generation,
        place=place_of(server),
        trust_annotations=server.trust_annotations,
        credential=server.oauth.identity if server.oauth is not None else "",
        make_line=per_request if pooling.reuse == "none" else None,
    )
