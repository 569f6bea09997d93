"""Puts trunkline into ContextForge: which names it needs there, and what stands in their place. All, or none."""

import functools
import importlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from starlette.websockets import WebSocket

from ...transports.asgi import ASGIApp, Receive, Scope, Send
from .asked import Incoming, incoming, name_of, read_headers
from .client import OutputSchemas, handshake_of, leased_sessions, leasing, types_of
from .direct import shorten
from .gateways import CONNECT_FIELDS, SSE, GatewayRecord
from .hearing import Hearing
from .invocations import identified, invocation, noting_gateway
from .leaving import Leave, Leaving
from .metrics import expose
from .registry import session_registry
from .reuse import Lease, NoRoom, OldPath, Reuse, Told
from .rpc import RPC
from .settings import ContextForgeSettings
from .sse import SSETransport, StreamSettings
from .streamable_http import SDK_SESSIONS, session_manager
from .websocket import WebSocketTransport, relay

logger = logging.getLogger(__name__)

PACKAGE: Final = "mcpgateway"
MAIN: Final = "mcpgateway.main"

NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "config": (
        "settings.app_root_path",
        "settings.cache_type",
        "settings.enable_ed25519_signing",
        "settings.host",
        "settings.port",
        "settings.sse_keepalive_enabled",
        "settings.sse_keepalive_interval",
        "settings.sse_retry_timeout",
        "settings.websocket_ping_interval",
    ),
    "db": ("Gateway", "SessionLocal", "SessionMessageRecord", "get_db"),
    "cache": ("SessionRegistry",),
    "cache.session_registry": (
        "HTTPException",
        "SessionMessageRecord",
        "SessionRegistry.add_session",
        "SessionRegistry.broadcast",
        "SessionRegistry.remove_session",
        "SessionRegistry.respond",
        "SessionRegistry.shutdown",
        "get_db",
    ),
    "services.metrics": ("setup_metrics",),
    "services.tool_service": (
        "ClientSession.call_tool",
        "ClientSession.initialize",
        "ClientSession.send_request",
        "ClientSession.send_notification",
        "ToolService.invoke_tool",
        "create_span",
        "sse_client",
        "streamablehttp_client",
    ),
    "transports": ("SSETransport", "WebSocketTransport"),
    "transports.sse_transport": ("SSETransport",),
    "transports.websocket_transport": ("WebSocketTransport",),
    "transports.streamablehttp_transport": (
        "EventMessage",
        "SessionManagerWrapper.handle_streamable_http",
        "SessionManagerWrapper.initialize",
        "SessionManagerWrapper.shutdown",
        "StreamableHTTPSessionManager",
        "mcp_app.request_handlers",
        "request_headers_var",
        "server_id_var",
        "types.CallToolResult",
        "user_context_var",
    ),
    "utils.verify_credentials": ("verify_credentials",),
}
"""By module: what is used or replaced, in every version that is supported."""

REGISTRY_MODULE: Final = "services.upstream_session_registry"
NEEDED_SINCE_1: Final[Mapping[str, tuple[str, ...]]] = {
    REGISTRY_MODULE: (
        "UpstreamSessionRegistry.acquire",
        "UpstreamSessionRegistry.close_all",
        "UpstreamSessionRegistry.evict_gateway",
        "UpstreamSessionRegistry.evict_session",
    ),
    "services.resource_service": ("ResourceService.read_resource",),
    "services.prompt_service": ("PromptService.get_prompt",),
}
"""What is needed beside it where ContextForge keeps upstream sessions itself."""


class MissingNames(RuntimeError):
    """A version of ContextForge lacks names; `names` are they, with their modules."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"this version of ContextForge lacks {', '.join(names)}")
        self.names = names


@dataclass(frozen=True, slots=True)
class Replacement:
    """One name of one module or class, and what stands there now."""

    owner: Any
    name: str
    value: object


def put(replacements: Iterable[Replacement]) -> None:
    """Replace every name, or none: where one cannot be replaced, those before it are put back."""
    done: list[Replacement] = []
    try:
        for one in replacements:
            stock = getattr(one.owner, one.name)
            setattr(one.owner, one.name, one.value)
            done.append(Replacement(one.owner, one.name, stock))
    except BaseException:
        for stock in reversed(done):
            setattr(stock.owner, stock.name, stock.value)
        raise


class ContextForge:
    """The modules of ContextForge that are met, by their names below `mcpgateway`.

    Raises:
        MissingNames: a module or a name that is needed is not there.
    """

    def __init__(self) -> None:
        self._modules: dict[str, ModuleType] = {}
        missing = list(self._load(NEEDED))
        self.keeps_sessions = not missing and self._find(REGISTRY_MODULE) is not None
        """True where ContextForge keeps upstream sessions itself: since 1.0."""
        if self.keeps_sessions:
            missing += self._load(NEEDED_SINCE_1)
        if not missing:
            missing += self._lacking_in_the_sdk()
        if missing:
            raise MissingNames(missing)

    def __getitem__(self, name: str) -> ModuleType:
        return self._modules[name]

    def _load(self, needed: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
        for module_name, names in needed.items():
            module = self._find(module_name)
            if module is None:
                yield f"{PACKAGE}.{module_name}"
                continue
            for name in names:
                if not _has(module, name):
                    yield f"{PACKAGE}.{module_name}.{name}"

    def _lacking_in_the_sdk(self) -> Iterator[str]:
        http = self._modules["transports.streamablehttp_transport"]
        manager = http.StreamableHTTPSessionManager
        if not hasattr(manager(app=http.mcp_app), SDK_SESSIONS):
            yield f"{manager.__module__}.{manager.__name__}.{SDK_SESSIONS}"

    def _find(self, name: str) -> ModuleType | None:
        if name not in self._modules:
            full = f"{PACKAGE}.{name}"
            try:
                self._modules[name] = importlib.import_module(full)
            except ModuleNotFoundError as error:
                if error.name is None or not full.startswith(error.name):
                    raise
                return None
        return self._modules[name]


class Installation:
    """trunkline inside one process of ContextForge. Implements the ports of the registry and the session manager."""

    def __init__(self, forge: ContextForge, settings: ContextForgeSettings) -> None:
        self._forge = forge
        self.settings = settings
        self._types = types_of(forge["services.tool_service"].ClientSession)
        """The SDK's message types: looked for before that class is replaced."""
        self._theirs = theirs = forge["config"].settings
        self.reuse = Reuse(
            settings,
            self._read_record,
            verifies_tls=not (getattr(theirs, "skip_ssl_verify", False) or theirs.enable_ed25519_signing),
            trusted=importlib.import_module("httpx").create_ssl_context,
            hear=Hearing(self._hand_on).hear if forge.keeps_sessions else None,
        )
        self._rpc: RPC | None = None
        self._leaving = Leaving()

    # Services

    @property
    def rpc(self) -> RPC:
        """See `registry.Services.rpc`."""
        assert self._rpc is not None, "the application is built"
        return self._rpc

    @property
    def max_inflight(self) -> int:
        """See `registry.Services.max_inflight`."""
        return self.settings.max_inflight

    @property
    def takes_query_token(self) -> bool:
        """Whether a socket may name its token in its URL, as ContextForge itself has it."""
        return not self._forge.keeps_sessions

    async def who(self, headers: Mapping[str, str]) -> str:
        """See `registry.Services.who`."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return headers.get("authorization", "") or headers.get("cookie", "")
        try:
            payload = await self._forge["utils.verify_credentials"].verify_credentials(token)
        except Exception:  # whatever is wrong with it, it proves nobody
            return ""
        return name_of(payload)

    async def start(self) -> None:
        """See `streamable_http.Services.start`."""
        self._leaving.watch()
        await self.reuse.start()

    async def stop(self) -> None:
        """See `streamable_http.Services.stop`."""
        await self.reuse.stop()
        self._leaving.unwatch()

    async def ended(self, session_id: str) -> None:
        """See `registry.Services.ended`."""
        await self.reuse.end(session_id)

    def at_exit(self, leave: Leave) -> None:
        """See `registry.Services.at_exit`."""
        self._leaving.tell(leave)

    # What is replaced.

    def replacements(self) -> list[Replacement]:
        """Every name with what stands in its place; nothing is replaced yet."""
        forge, theirs, types = self._forge, self._theirs, self._types
        tools, http = forge["services.tool_service"], forge["transports.streamablehttp_transport"]
        sessions = leased_sessions(tools.ClientSession, types, OutputSchemas())
        manager = session_manager(
            http,
            self,
            reads_context=not forge.keeps_sessions,
            keeps_events=not (forge.keeps_sessions and theirs.cache_type == "redis"),  # which it keeps them in
            cuts_calls=not forge.keeps_sessions,
        )
        registry = session_registry(forge["cache.session_registry"], self, checks_owner=not forge.keeps_sessions)
        sse = type("SSETransport", (SSETransport,), {"settings": self._stream_settings()})
        pings = {"ping_interval": float(theirs.websocket_ping_interval)}
        websocket = type("WebSocketTransport", (WebSocketTransport,), pings)
        metrics = forge["services.metrics"]
        found: list[tuple[Any, str, object]] = [
            (tools, "streamablehttp_client", leasing(self.reuse, tools.streamablehttp_client, types, sse=False)),
            (tools, "sse_client", leasing(self.reuse, tools.sse_client, types, sse=True)),
            (tools, "ClientSession", sessions),
            (tools, "create_span", noting_gateway(tools.create_span)),
            (
                tools.ToolService,
                "invoke_tool",
                identified(tools.ToolService.invoke_tool, holds_database=not forge.keeps_sessions),
            ),
            (metrics, "setup_metrics", self._setting_up(metrics.setup_metrics)),
            (forge["cache.session_registry"], "SessionRegistry", registry),
            (forge["cache"], "SessionRegistry", registry),
            (http, "SessionManagerWrapper", manager),
            (forge["transports"], "SSETransport", sse),
            (forge["transports.sse_transport"], "SSETransport", sse),
            (forge["transports"], "WebSocketTransport", websocket),
            (forge["transports.websocket_transport"], "WebSocketTransport", websocket),
        ]
        if forge.keeps_sessions:
            found += self._replacements_since_1(sessions, types)
        return [Replacement(*one) for one in found]

    def _replacements_since_1(self, sessions: type, types: ModuleType) -> list[tuple[Any, str, object]]:
        forge = self._forge
        resources = forge["services.resource_service"].ResourceService
        prompts, registry = forge["services.prompt_service"].PromptService, forge[REGISTRY_MODULE]
        return [
            (resources, "read_resource", identified(resources.read_resource)),
            (prompts, "get_prompt", identified(prompts.get_prompt)),
            (registry, "UpstreamSessionRegistry", self._registry_class(registry, sessions, types)),
        ]

    def _registry_class(self, module: ModuleType, sessions: type, types: ModuleType) -> type:
        base: Any = module.UpstreamSessionRegistry
        reuse, handshake = self.reuse, handshake_of(types)

        class UpstreamSessionRegistry(base):  # type: ignore[misc]
            """ContextForge's registry; what it is asked for is a kept session of trunkline's where one may be."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self._left: set[tuple[str, str]] = set()
                """A client's session and a server, where there was no room: what is kept here by now stays here."""

            @asynccontextmanager
            async def acquire(self, **wanted: Any) -> AsyncIterator[Any]:
                lease: Lease | None = None
                called, place = invocation.get(), (wanted["downstream_session_id"], wanted["gateway_id"])
                if called is not None and place not in self._left:
                    try:
                        is_sse = wanted["transport_type"].value == "sse"
                        url = f"{SSE}{wanted['url']}" if is_sse else wanted["url"]
                        headers = wanted.get("headers") or {}
                        lease = await reuse.lease(called.asked, wanted["gateway_id"], url, headers, handshake)
                    except NoRoom:
                        self._left.add(place)
                    except OldPath:
                        pass
                if lease is None:
                    async with super().acquire(**wanted) as upstream:
                        yield upstream
                else:
                    yield SimpleNamespace(session=sessions(lease, lease))

            async def evict_session(self, downstream_session_id: str) -> int:
                await reuse.end(downstream_session_id)
                self._left = {place for place in self._left if place[0] != downstream_session_id}
                evicted: int = await super().evict_session(downstream_session_id)
                return evicted

            async def close_all(self) -> None:
                """End every session: ContextForge does so on SIGHUP, and when it stops."""
                reuse.gateways.renew()
                self._left.clear()
                await super().close_all()

            async def evict_gateway(self, gateway_id: str) -> int:
                reuse.gateways.forget(gateway_id)
                await reuse.gateways.refresh()
                self._left = {place for place in self._left if place[1] != gateway_id}
                evicted: int = await super().evict_gateway(gateway_id)
                return evicted

        return UpstreamSessionRegistry

    # Inside.

    def _stream_settings(self) -> StreamSettings:
        theirs = self._theirs
        return StreamSettings(
            base_url=f"http://{theirs.host}:{theirs.port}",
            retry=theirs.sse_retry_timeout,
            keepalive=float(theirs.sse_keepalive_interval) if theirs.sse_keepalive_enabled else None,
        )

    def _setting_up(self, stock: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """ContextForge calls this with its application as soon as that is there."""

        @functools.wraps(stock)
        def setup_metrics(app: Any) -> Any:
            done = stock(app)
            self._rpc = RPC(app, self._theirs.app_root_path or "")
            self._watch_records()
            expose(self.reuse)
            app.add_middleware(Entrance, installation=self)
            shorten(app)
            return done

        return setup_metrics

    def serves_socket(self, scope: Scope) -> bool:
        """Whether this is a socket of `/ws`, and ContextForge would serve it."""
        path = scope["path"].removeprefix(self._theirs.app_root_path or "")
        return path == "/ws" and bool(getattr(self._theirs, "mcpgateway_ws_relay_enabled", True))

    def _read_record(self, gateway_id: str) -> GatewayRecord | None:
        db = self._forge["db"]
        with db.SessionLocal() as session:
            row = session.get(db.Gateway, gateway_id)
            if row is None:
                return None
            fields = {name: getattr(row, name) for name in CONNECT_FIELDS if hasattr(row, name)}
            return GatewayRecord(str(row.id), str(row.name), str(row.transport), fields)

    def _watch_records(self) -> None:
        """Hear of edits in this process at once; those of other workers are seen when records are read again."""
        events = importlib.import_module("sqlalchemy.event")

        def edited(mapper: object, connection: object, record: Any) -> None:
            self.reuse.gateways.forget(str(record.id))

        for kind in ("after_update", "after_delete"):
            events.listen(self._forge["db"].Gateway, kind, edited)

    async def _hand_on(self, told: Told) -> None:
        """Hand what a server says to ContextForge's own handler, as it would hear it from a session of its own."""
        make = getattr(self._forge[REGISTRY_MODULE]._registry, "_message_handler_factory", None)
        if make is None:
            return
        try:
            notification = self._types.ServerNotification.model_validate(json.loads(told.message))
        except ValueError:
            return  # one that this version of the SDK does not know
        handler = make(told.url.removeprefix(SSE), told.gateway_id, downstream_session_id=told.session or None)
        await handler(notification)


class Entrance:
    """The middleware through which requests and sockets come, so that each message is known by what brought it."""

    def __init__(self, app: ASGIApp, installation: Installation) -> None:
        self._app = app
        self._installation = installation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or socket."""
        installation = self._installation
        if scope["type"] == "websocket" and installation.serves_socket(scope):
            socket = WebSocket(scope, receive, send)
            await relay(
                socket,
                installation.rpc,
                max_inflight=installation.max_inflight,
                ended=installation.ended,
                takes_query_token=installation.takes_query_token,
            )
            return
        if scope["type"] == "http":
            incoming.set(Incoming(scope, read_headers(scope)))
        await self._app(scope, receive, send)


def _has(module: ModuleType, path: str) -> bool:
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True
