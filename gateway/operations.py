"""What operators ask a gateway: is it alive, is it ready, what does it hold. Never on the path of a call."""

import re
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..mux.pool import Pool
from ..transports.asgi import Grant, RawHeaders, headers_of
from ..transports.guard import OWN_SITES, Guard, Rejected, Unauthorized
from .auth import METADATA, Authenticator
from .events import Events, EventsResponse
from .metrics import CONTENT_TYPE, Expositions, InFlight, exposition
from .rows import NotTold
from .settings import NAME, Settings, is_loopback
from .status_page.document import document
from .trends import Trends
from .worker_metrics import WorkerMetrics
from .workers.member import Member
from .workers.overview import Overview

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


def operations_app(
    pool: Pool,
    settings: Settings,
    guard: Guard,
    authenticator: Authenticator,
    *,
    beside: InFlight = lambda server: 0,
    member: Member | None = None,
    workers: WorkerMetrics | None = None,
    events: Events | None = None,
) -> Starlette:
    """The application for everything that is not an MCP endpoint; `beside` and `workers` as in `exposition`.

    `events` are what is listened to, where they are to outlive this application; `member` is this worker among others,
    where there are any.
    """
    events = events or Events(pool, Overview(pool, Trends(pool.statistics), member, beside))
    overview = events.overview
    expositions = Expositions(lambda: exposition(pool, beside, workers))

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readiness(request: Request) -> Response:
        if pool.draining:
            return PlainTextResponse("draining\n", 503)
        if member is not None and member.membership.is_away:
            return PlainTextResponse("the directory is away\n", 503)
        return PlainTextResponse("ready\n")

    async def metrics(request: Request) -> Response:
        return Response(await expositions.text(), media_type=CONTENT_TYPE)

    async def gateway(request: Request) -> Response:
        return JSONResponse(await overview.gateway(request.scope))

    async def servers(request: Request) -> Response:
        return JSONResponse(await overview.servers(request.scope))

    async def sessions(request: Request) -> Response:
        return JSONResponse(await overview.sessions(request.scope, request.query_params))

    async def session(request: Request) -> Response:
        return JSONResponse(await overview.session(request.scope, request.path_params["handle"]))

    def guarded(handler: Handler) -> Handler:
        async def checked(request: Request) -> Response:
            try:
                guard.check(headers_of(request.scope))
                return await handler(request)
            except Rejected as rejected:
                pool.statistics.count("refused", rejected.reason)
                return PlainTextResponse(f"{rejected.message}\n", rejected.status)
            except Unauthorized as unknown:
                pool.statistics.count("refused", "unauthorized")
                return PlainTextResponse(f"{unknown.message}\n", 401, _challenge(unknown))

        return checked

    def admit(request: Request) -> Grant:
        """What lets this request see what only operators see.

        Raises:
            Unauthorized: nothing does.
        """
        alone = authenticator.anonymous_grant if _is_alone(request, settings) else None
        grant = alone or authenticator.admin_grant(headers_of(request.scope))
        if grant is None:
            raise Unauthorized("send the admin token as a bearer token")
        return grant

    def private(handler: Handler) -> Handler:
        async def checked(request: Request) -> Response:
            if request.headers.get("sec-fetch-site", "none") not in OWN_SITES:
                raise Rejected(403, "cross_site", "no page of another site may ask for this")
            admit(request)
            try:
                response = await handler(request)
            except NotTold as error:
                response = JSONResponse(error.body, error.status)
            response.headers.update(PRIVATE)
            return response

        return guarded(checked)

    async def stream(request: Request) -> Response:
        return EventsResponse(events, admit(request)) if request.method == "GET" else Response()

    async def status_page(request: Request) -> Response:
        """The page; to a browser that may see nothing here it is the form for the admin token."""
        headers = {**PRIVATE, **PAGE, "content-security-policy": DOCUMENT.policy}
        try:
            admit(request)
        except Unauthorized as unknown:
            if "text/html" not in request.headers.get("accept", ""):
                raise
            pool.statistics.count("refused", "unauthorized")
            return HTMLResponse(DOCUMENT.html, 401, headers | _challenge(unknown))
        return HTMLResponse(DOCUMENT.html, 200, headers)

    async def unknown(request: Request) -> Response:
        names = ", ".join(f"/servers/{name}/mcp" for name in settings.servers) if _is_alone(request, settings) else ""
        known = f"; served here: {names}" if names else "; MCP endpoints are /servers/NAME/mcp"
        what = "nothing at this path"
        if asked := SERVER_PATH.match(request.url.path):
            server = settings.servers.get(asked[1])
            if server is None:
                what = f"there is no server {asked[1]}"
            elif "legacy" in server.eras and request.url.path == f"{asked[0]}ws":
                return PlainTextResponse(f"{NO_UPGRADE}\n", 426, {"upgrade": "websocket"})
        return PlainTextResponse(f"{what}{known}\n", 404)

    async def not_found(request: Request, error: Exception) -> Response:
        return await guarded(unknown)(request)

    async def resource(request: Request) -> Response:
        """What this server's endpoint asks of a token (RFC 9728), for pages that may speak to it as well."""
        name = request.path_params["name"]
        if settings.auth.mode != "jwt" or name not in settings.servers:
            return await unknown(request)
        headers = headers_of(request.scope)
        if request.method == "OPTIONS":
            granted = guard.preflight(headers)
            return _with(Response(status_code=204 if granted else 403), granted)
        base = settings.gateway.public_url.rstrip("/") or f"{request.url.scheme}://{request.url.netloc}"
        told = {
            "resource": f"{base}/servers/{name}/mcp",
            "authorization_servers": [settings.auth.issuer],
            "bearer_methods_supported": ["header"],
        }
        return _with(JSONResponse(told), guard.cors(headers))

    routes = [
        Route("/healthz", health),
        Route(METADATA + "/servers/{name}/mcp", guarded(resource), methods=["GET", "OPTIONS"]),
        Route("/readyz", readiness),
        Route("/metrics", guarded(metrics)),
        Route("/", guarded(status_page)),
        Route("/api/events", private(stream)),
        Route("/api/gateway", private(gateway)),
        Route("/api/servers", private(servers)),
        Route("/api/sessions", private(sessions)),
        Route("/api/sessions/{handle}", private(session)),
    ]
    return Starlette(routes=routes, exception_handlers={404: not_found})


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
