"""What operators ask a gateway: is it alive, is it ready, what does it hold. Never on the path of a call."""

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..mux.pool import Pool
from ..transports.asgi import HOPS, UNBOUND, Grant, RawHeaders, headers_of
from ..transports.guard import OWN_SITES, Guard
from ..transports.status import HTTPRefusal, Unauthorized
from .auth import METADATA, Authenticator
from .events import Events, EventsResponse
from .metrics import CONTENT_TYPE, Expositions, InFlight, exposition
from .rows import NotTold
from .settings import NAME, Settings, is_loopback
from .status_page.document import document
from .worker_metrics import WorkerMetrics
from .workers.member import Member

NO_UPGRADE: Final = "a WebSocket is served here: ask for one, and let a proxy before the gateway pass Upgrade on"
SERVER_PATH: Final = re.compile(rf"/servers/({NAME.pattern})/")
DOCUMENT: Final = document()

PRIVATE: Final = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of what only operators see: no cache keeps it, and no page of another site can take it in."""

PAGE: Final = {"referrer-policy": "no-referrer", "cross-origin-opener-policy": "same-origin", "x-frame-options": "DENY"}

Handler = Callable[[Request], Awaitable[Response]]


class Operations(Starlette):
    """The application for everything that is not an MCP endpoint; `beside` and `workers` as in `exposition`.

    `events` are what is listened to, which outlive it; `member` is this worker among others, where there are any.
    """

    def __init__(
        self,
        pool: Pool,
        settings: Settings,
        guard: Guard,
        authenticator: Authenticator,
        events: Events,
        *,
        beside: InFlight = Counter,
        member: Member | None = None,
        workers: WorkerMetrics | None = None,
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._guard = guard
        self._authenticator = authenticator
        self._member = member
        self._expositions = Expositions(lambda: exposition(pool, beside, workers))
        self._events, seen = events, events.overview
        routes = [
            Route("/healthz", self._health),
            Route(METADATA + "/servers/{name}/mcp", self._guarded(self._resource), methods=["GET", "OPTIONS"]),
            Route("/readyz", self._readiness),
            Route("/metrics", self._guarded(self._metrics)),
            Route("/", self._guarded(self._status_page)),
            Route("/api/events", self._private(self._stream)),
            Route("/api/gateway", self._told(lambda asked: seen.gateway(asked.scope))),
            Route("/api/servers", self._told(lambda asked: seen.servers(asked.scope))),
            Route("/api/sessions", self._told(lambda asked: seen.sessions(asked.scope, asked.query_params))),
            Route("/api/sessions/{handle}", self._told(lambda asked: seen.session(asked.scope, **asked.path_params))),
        ]
        super().__init__(routes=routes, exception_handlers={404: self._not_found})

    # Who may ask.

    def _guarded(self, handler: Handler) -> Handler:
        async def checked(request: Request) -> Response:
            try:
                self._guard.check(headers_of(request.scope))
                return await handler(request)
            except HTTPRefusal as refusal:
                self._pool.statistics.count("refused", refusal.word)
                return PlainTextResponse(f"{refusal.message}\n", refusal.status)
            except Unauthorized as unknown:
                self._pool.statistics.count("refused", "unauthorized")
                return PlainTextResponse(f"{unknown.message}\n", 401, _challenge(unknown))

        return checked

    def _admit(self, request: Request) -> Grant:
        """What lets this request see what only operators see: another worker has let in what that one asks.

        Raises:
            Unauthorized: nothing does.
        """
        if request.scope.get(HOPS):
            return UNBOUND
        alone = self._authenticator.anonymous_grant if _is_alone(request, self._settings) else None
        grant = alone or self._authenticator.admin_grant(headers_of(request.scope))
        if grant is None:
            raise Unauthorized("send the admin token as a bearer token")
        return grant

    def _private(self, handler: Handler) -> Handler:
        async def checked(request: Request) -> Response:
            if request.headers.get("sec-fetch-site", "none") not in OWN_SITES:
                raise HTTPRefusal(403, "cross_site", "no page of another site may ask for this")
            self._admit(request)
            try:
                response = await handler(request)
            except NotTold as error:
                response = JSONResponse(error.body, error.status)
            response.headers.update(PRIVATE)
            return response

        return self._guarded(checked)

    # What is answered.

    async def _health(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readiness(self, request: Request) -> Response:
        if self._pool.draining:
            return PlainTextResponse("draining\n", 503)
        if self._member is not None and self._member.membership.is_away:
            return PlainTextResponse("the directory is away\n", 503)
        return PlainTextResponse("ready\n")

    async def _metrics(self, request: Request) -> Response:
        return Response(await self._expositions.text(), media_type=CONTENT_TYPE)

    def _told(self, tell: Callable[[Request], Awaitable[object]]) -> Handler:
        async def handler(request: Request) -> Response:
            return Response(msgspec.json.encode(await tell(request)), media_type="application/json")

        return self._private(handler)

    async def _stream(self, request: Request) -> Response:
        return EventsResponse(self._events, self._admit(request)) if request.method == "GET" else Response()

    async def _status_page(self, request: Request) -> Response:
        """The page; to a browser that may see nothing here it is the form for the admin token."""
        headers = {**PRIVATE, **PAGE, "content-security-policy": DOCUMENT.policy}
        try:
            self._admit(request)
        except Unauthorized as unknown:
            if "text/html" not in request.headers.get("accept", ""):
                raise
            self._pool.statistics.count("refused", "unauthorized")
            return HTMLResponse(DOCUMENT.html, 401, headers | _challenge(unknown))
        return HTMLResponse(DOCUMENT.html, 200, headers)

    async def _unknown(self, request: Request) -> Response:
        servers = self._settings.servers
        names = ", ".join(f"/servers/{name}/mcp" for name in servers) if _is_alone(request, self._settings) else ""
        known = f"; served here: {names}" if names else "; MCP endpoints are /servers/NAME/mcp"
        what = "nothing at this path"
        if asked := SERVER_PATH.match(request.url.path):
            server = servers.get(asked[1])
            if server is None:
                what = f"there is no server {asked[1]}"
            elif "legacy" in server.eras and request.url.path == f"{asked[0]}ws":
                return PlainTextResponse(f"{NO_UPGRADE}\n", 426, {"upgrade": "websocket"})
        return PlainTextResponse(f"{what}{known}\n", 404)

    async def _not_found(self, request: Request, error: Exception) -> Response:
        return await self._guarded(self._unknown)(request)

    async def _resource(self, request: Request) -> Response:
        """What this server's endpoint asks of a token (RFC 9728), for pages that may speak to it as well."""
        name, settings = request.path_params["name"], self._settings
        if settings.auth.mode != "jwt" or name not in settings.servers:
            return await self._unknown(request)
        headers = headers_of(request.scope)
        if request.method == "OPTIONS":
            granted = self._guard.preflight(headers)
            return _with(Response(status_code=204 if granted else 403), granted)
        base = settings.gateway.public_url.rstrip("/") or f"{request.url.scheme}://{request.url.netloc}"
        told = {
            "resource": f"{base}/servers/{name}/mcp",
            "authorization_servers": [settings.auth.issuer],
            "bearer_methods_supported": ["header"],
        }
        return _with(JSONResponse(told), self._guard.cors(headers))


def _with(response: Response, headers: RawHeaders) -> Response:
    response.raw_headers.extend(headers)
    return response


def _challenge(unknown: Unauthorized) -> dict[str, str]:
    return {"www-authenticate": unknown.challenge}


def _is_alone(request: Request, settings: Settings) -> bool:
    """True on one person's machine: nobody is authenticated, and listener, peer and Host are all loopback."""
    peer = request.client.host if request.client else ""
    forwarded = any(name == "forwarded" or name.startswith("x-forwarded-") for name in request.headers)
    return (
        settings.auth.mode == "none"
        and is_loopback(settings.gateway.host)
        and is_loopback(peer)
        and is_loopback(request.url.hostname or "")
        and not forwarded
    )
