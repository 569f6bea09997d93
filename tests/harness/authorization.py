"""An authorization server, and an MCP server on the SDK that takes only its tokens: real ones, on loopback.

async with AuthorizationServer() as issuer, GuardedServer(issuer) as server:
    ...  # client "gateway", secret `SECRET`; point the part under test at server.url
"""

import asyncio
import base64
import contextlib
import time
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Self

import anyio
import jwt
import uvicorn
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context, MCPServer
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harness.in_process import InProcessServer
from harness.ports import bound_socket

App = Callable[[MutableMapping[str, Any], Callable[[], Any], Callable[[Any], Any]], Awaitable[None]]

CLIENT = "gate:way"
SECRET = "s3cret/of the gateway"
"""Needs encoding before it goes into Basic credentials (RFC 6749, 2.3.1)."""

PATIENCE = 10.0


class _Served:
    """An ASGI application on a port of its own, for as long as it is entered."""

    def __init__(self) -> None:
        self.listener = bound_socket()
        self.base = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def app(self) -> App:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        config = uvicorn.Config(self.app(), log_config=None, log_level="critical", ws="none", lifespan="on")
        self._server = InProcessServer(config)
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._server.serve, [self.listener])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._server.should_exit = self._server.force_exit = True
        return await self._tasks.__aexit__(kind, error, trace)


class AuthorizationServer(_Served):
    """Issues tokens for client credentials: by secret (Basic or in the body), or by an assertion signed with a key."""

    def __init__(self, *, lifetime: int | None = 3600) -> None:
        super().__init__()
        self.issuer = f"{self.base}/"  # as the SDK's servers spell it; issuers are compared letter by letter
        self.secret = SECRET
        self.lifetime = lifetime
        self.public_key: Any = None
        """Of the client, for `private_key_jwt`."""
        self.seen: Counter[str] = Counter()
        """Requests by path."""
        self.forms: list[dict[str, str]] = []
        """What token requests asked for."""
        self.methods: list[str] = []
        """How their client proved itself."""
        self.valid: dict[str, float] = {}
        """Tokens that count, and until when (wall clock)."""
        self.resources: dict[str, str] = {}
        """Which server each token is for."""
        self.fault: Callable[[], Awaitable[Response]] | None = None
        """Answers token requests instead, while it is set."""
        self.metadata: dict[str, Any] = {}
        """Over what it says of itself."""
        self._expired = asyncio.Event()

    def revoke(self) -> None:
        """No token that was issued counts any longer."""
        self.valid.clear()

    async def expired(self) -> None:
        """Wait until the token that was issued last is no longer valid."""
        async with asyncio.timeout(PATIENCE):
            await self._expired.wait()

    def app(self) -> App:
        return Starlette(
            routes=[
                Route("/.well-known/oauth-authorization-server", self._describe),
                Route("/token", self._token, methods=["POST"]),
            ]
        )

    async def _describe(self, request: Request) -> Response:
        self.seen["metadata"] += 1
        return JSONResponse(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.base}/authorize",
                "token_endpoint": f"{self.base}/token",
                "response_types_supported": ["code"],
                "grant_types_supported": ["client_credentials"],
                **self.metadata,
            }
        )

    async def _token(self, request: Request) -> Response:
        self.seen["token"] += 1
        form = dict(urllib.parse.parse_qsl((await request.body()).decode()))
        self.forms.append(form)
        if self.fault is not None:
            return await self.fault()
        method = self._method(request.headers.get("authorization", ""), form)
        if method is None:
            return JSONResponse({"error": "invalid_client", "error_description": f"not {SECRET}"}, 401)
        self.methods.append(method)
        if form.get("grant_type") != "client_credentials":
            return JSONResponse({"error": "unsupported_grant_type"}, 400)
        token = f"token-{self.seen['token']}"
        self.valid[token] = time.time() + (self.lifetime if self.lifetime is not None else 3600)
        self.resources[token] = form.get("resource", "")
        self._expired = expired = asyncio.Event()
        if self.lifetime is not None:
            asyncio.get_running_loop().call_later(self.lifetime + 0.01, expired.set)
        expires = {} if self.lifetime is None else {"expires_in": self.lifetime}
        return JSONResponse({"access_token": token, "token_type": "bearer", **expires})

    def _method(self, authorization: str, form: dict[str, str]) -> str | None:
        """How the client proved who it is; None where it did not."""
        if authorization.startswith("Basic "):
            name, _, secret = base64.b64decode(authorization[6:]).decode().partition(":")
            pair = urllib.parse.unquote(name), urllib.parse.unquote(secret)
            return "client_secret_basic" if pair == (CLIENT, self.secret) else None
        if "client_secret" in form:
            return "client_secret_post" if (form["client_id"], form["client_secret"]) == (CLIENT, self.secret) else None
        try:
            claims = jwt.decode(form["client_assertion"], self.public_key, ["RS256", "ES256"], audience=self.issuer)
        except (KeyError, TypeError, jwt.PyJWTError):
            return None
        return "private_key_jwt" if claims["sub"] == claims["iss"] == CLIENT else None


class GuardedServer(_Served):
    """An MCP server on the SDK: without a token that counts it answers 401, and says where one is issued (RFC 9728)."""

    def __init__(self, issuer: AuthorizationServer, *, sse: bool = False) -> None:
        super().__init__()
        self.issuer = issuer
        self.url = f"sse+{self.base}/sse" if sse else f"{self.base}/mcp"
        self.authorizations: list[str] = []
        """Each `Authorization` that came in, in order; empty where a request had none."""
        self.refused = 0
        self.runs: Counter[str] = Counter()
        """Calls that were run, by their tag."""
        self._sse = sse

    async def verify_token(self, token: str) -> AccessToken | None:
        """See the SDK's `TokenVerifier`."""
        if self.issuer.valid.get(token, 0.0) <= time.time():
            self.refused += 1
            return None
        return AccessToken(token=token, client_id=CLIENT, scopes=[], resource=self.issuer.resources[token])

    def app(self) -> App:
        resource = self.url.removeprefix("sse+")
        auth = AuthSettings(
            issuer_url=AnyHttpUrl(self.issuer.issuer),
            resource_server_url=AnyHttpUrl(resource),
            validate_token_resource=True,
        )
        server = MCPServer("guarded", token_verifier=self, auth=auth)
        counts: Counter[str] = Counter()

        @server.tool()
        async def counter(ctx: Context, tag: str = "") -> int:
            """Count the calls of this session."""
            request = ctx.request_context.request
            assert request is not None
            session = request.headers.get("mcp-session-id") or request.query_params.get("session_id", "")
            self.runs[tag] += 1
            counts[session] += 1
            return counts[session]

        inner: Any = server.sse_app() if self._sse else server.streamable_http_app()

        async def noting(
            scope: MutableMapping[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]
        ) -> None:
            if scope["type"] == "http" and not scope["path"].startswith("/.well-known/"):
                found = [value.decode() for name, value in scope["headers"] if name == b"authorization"]
                self.authorizations.append(", ".join(found))
            await inner(scope, receive, send)

        return noting


@contextlib.asynccontextmanager
async def guarded(
    *, lifetime: int | None = 3600, sse: bool = False
) -> AsyncIterator[tuple[AuthorizationServer, GuardedServer]]:
    """Both, for one test."""
    async with AuthorizationServer(lifetime=lifetime) as issuer, GuardedServer(issuer, sse=sse) as server:
        yield issuer, server
