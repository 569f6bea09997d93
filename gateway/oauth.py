"""Tokens for the gateway itself: OAuth client credentials, by the flow of the SDK's provider (2.x).

The provider discovers who issues tokens for a server (RFC 9728, RFC 8414) and checks that it is the configured issuer
before it hands out a secret. It is driven here with requests of our own: bounded, over https or on this machine, and
beside the MCP server's traffic. What goes wrong is told in words of our own: what an issuer writes may hold a secret.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from ..transports.upstream.credentials import NotIssued, Token
from ..transports.upstream.http import target_within
from ..transports.upstream.http_client import Trusted, trusting
from ..transports.upstream.proxy import proxy_of
from .settings import OAuth, Server, SettingsError, is_loopback

if TYPE_CHECKING:
    import httpx2
    from mcp.client.auth import OAuthClientProvider

REQUEST_SECONDS: Final = 10.0
"""How long one request to the issuer may take."""

MAX_BYTES: Final = 262_144
"""The largest answer that is read: metadata, or a token."""

MAX_TOKEN: Final = 16_384
MAX_PORT: Final = 65_535
MAX_REQUESTS: Final = 16
"""Requests that one token may take, discovery included."""

TOKEN_ERRORS: Final = frozenset(
    {
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "invalid_target",
        "unauthorized_client",
        "unsupported_grant_type",
    }
)
"""Words of RFC 6749 (5.2) and RFC 8707 that an issuer's refusal may be told with."""


class ClientCredentials:
    """Asks an issuer for tokens that prove the gateway to one server. Implements `TokenSource`.

    `system` is what is trusted where the server has no `ca` besides. httpx2 writes to it (ALPN).

    Raises:
        SettingsError: the SDK that is installed has no such provider.
    """

    def __init__(self, name: str, server: Server, oauth: OAuth, system: Trusted = "") -> None:
        try:
            import httpx2  # noqa: F401
            from mcp.client.auth.extensions import client_credentials  # noqa: F401
        except ImportError:
            raise SettingsError(f"servers.{name}.oauth", "needs the SDK's second line: install 'mcp>=2'") from None
        self._url = server.url.removeprefix("sse+")
        self._is_local = is_loopback(urlsplit(self._url).hostname or "")
        self._oauth = oauth
        self._context = trusting("" if server.ca else system)
        if server.ca:
            self._context.load_verify_locations(cafile=server.ca)
        for noisy in ("mcp.client.auth", "httpx2"):  # they log bodies of answers and addresses
            logging.getLogger(noisy).setLevel(logging.CRITICAL)

    async def fetch(self, challenge: str) -> Token:
        """See `TokenSource.fetch`."""
        import httpx2
        from mcp.client.auth import OAuthFlowError

        try:
            provider = self._provider()
        except OSError as error:
            raise NotIssued("the file of the private key cannot be read") from error
        request = httpx2.Request("POST", self._url)
        refused = httpx2.Response(401, headers={"WWW-Authenticate": self._challenge(challenge)}, request=request)
        passage = _Passage(self)
        try:
            await passage.follow(provider.async_auth_flow(request), request, refused)
        except (OAuthFlowError, ValueError, OverflowError, httpx2.InvalidURL) as error:  # a ValidationError is one
            raise NotIssued(passage.explain()) from error
        found = provider.context.current_tokens
        if found is None:
            raise NotIssued(passage.explain())
        token = found.access_token
        if not token or len(token) > MAX_TOKEN or not all("\x21" <= character <= "\x7e" for character in token):
            raise NotIssued("the authorization server gave a token that cannot be sent")
        return Token(token, found.expires_in)

    async def perform(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request of the flow, and read its answer whole.

        Raises:
            NotIssued: it must not be sent, no answer came, or one that is too large.
        """
        import httpx2

        if not self._may_ask(request.url):
            raise NotIssued("discovery leads to an address that is neither https nor this machine's")
        if request.method == "GET" and not self._is_known(str(request.url)):
            raise NotIssued("discovery leads beyond the server and the configured issuer")
        if not 0 < (request.url.port or 1) <= MAX_PORT:
            raise NotIssued("discovery leads to a port that is none")
        proxy = proxy_of(str(request.url))
        try:
            async with (
                httpx2.AsyncClient(
                    verify=self._context, trust_env=False, proxy=proxy, timeout=REQUEST_SECONDS
                ) as client,
                aclosing(await client.send(request, stream=True)) as answer,
            ):
                if answer.headers.get("content-encoding", "identity") != "identity":
                    raise NotIssued("the authorization server encoded its answer in a way that was not asked for")
                body = bytearray()
                async for chunk in answer.aiter_raw():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        raise NotIssued("the authorization server's answer is too large")
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, ImportError) as error:  # or the proxy is none of HTTP
            raise NotIssued(f"the authorization server cannot be reached: {type(error).__name__}") from error
        headers = {"Content-Type": answer.headers.get("content-type", "")}
        whole = httpx2.Response(answer.status_code, headers=headers, content=bytes(body), request=request)
        whole.next_request = answer.next_request
        return whole

    def _provider(self) -> OAuthClientProvider:
        """A provider without memory: what it found out last time may no longer hold."""
        from mcp.client.auth.extensions.client_credentials import (
            ClientCredentialsOAuthProvider,
            PrivateKeyJWTOAuthProvider,
            SignedJWTParameters,
        )

        oauth = self._oauth
        if oauth.token_endpoint_auth_method != "private_key_jwt":  # noqa: S105 - its name, no password
            return ClientCredentialsOAuthProvider(
                self._url,
                _NoStorage(),
                oauth.client_id,
                oauth.client_secret,
                token_endpoint_auth_method=oauth.token_endpoint_auth_method,
                issuer=oauth.issuer,
            )
        signing = SignedJWTParameters(
            issuer=oauth.client_id,
            subject=oauth.client_id,
            signing_key=Path(oauth.private_key).read_text(),
            signing_algorithm=oauth.algorithm,
        )
        return PrivateKeyJWTOAuthProvider(
            self._url, _NoStorage(), oauth.client_id, signing.create_assertion_provider(), issuer=oauth.issuer
        )

    def _challenge(self, challenge: str) -> str:
        """What the server said, after the scope of the settings: the provider takes the first that it finds."""
        challenge = challenge if challenge.isascii() else ""
        return f'Bearer scope="{self._oauth.scope}", {challenge}' if self._oauth.scope else challenge or "Bearer"

    def _may_ask(self, url: httpx2.URL) -> bool:
        return url.scheme == "https" or (url.scheme == "http" and self._is_local and is_loopback(url.host))

    def _is_known(self, url: str) -> bool:
        """Whether this is of the server's origin or its issuer's: a server may name any other, one inside as well."""
        for base in (self._url, self._oauth.issuer):
            with suppress(ValueError):
                return bool(target_within(base, url))
        return False


class _Passage:
    """One run of the provider's flow, and how far it came."""

    def __init__(self, source: ClientCredentials) -> None:
        self._source = source
        self._last: httpx2.Response | None = None

    async def follow(
        self,
        flow: AsyncGenerator[httpx2.Request, httpx2.Response],
        request: httpx2.Request,
        refused: httpx2.Response,
    ) -> None:
        """Answer what the flow asks for, until it would send `request` again: then it has a token."""
        try:
            asked = await anext(flow)
            answer = refused
            for _ in range(MAX_REQUESTS):
                asked = await flow.asend(answer)
                if asked is request:
                    return
                answer = self._last = await self._source.perform(asked)
            raise NotIssued("discovery has no end")
        finally:
            await flow.aclose()

    def explain(self) -> str:
        """Why there is no token, as far as the last answer tells."""
        last = self._last
        if last is None:
            return "no authorization server could be asked"
        if last.request.method == "POST" and last.status_code not in (HTTPStatus.OK, HTTPStatus.CREATED):
            word = _error_of(last.content)
            return f"the authorization server answered HTTP {last.status_code}{f' ({word})' if word else ''}"
        if last.request.method == "POST":
            return "the authorization server's answer holds no token"
        if last.status_code == HTTPStatus.OK:
            return "the server's authorization server is not the configured issuer, or does not describe itself"
        return f"the authorization server was not found: HTTP {last.status_code} where it should describe itself"


class _NoStorage:
    """Keeps nothing: the token is held where requests find it. Implements the SDK's `TokenStorage`."""

    async def get_tokens(self) -> None:
        """There are none."""

    async def set_tokens(self, tokens: Any) -> None:
        """They are taken from the provider."""

    async def get_client_info(self) -> None:
        """It is in the settings."""

    async def set_client_info(self, client_info: Any) -> None:
        """It is in the settings."""


class _Refusal(msgspec.Struct):
    error: str = ""


def _error_of(body: bytes) -> str:
    try:
        word = msgspec.json.decode(body, type=_Refusal).error
    except (msgspec.DecodeError, RecursionError):
        return ""
    return word if word in TOKEN_ERRORS else ""


def sources_of(servers: Mapping[str, Server]) -> dict[str, ClientCredentials]:
    """Where the tokens come from that the settings of these servers ask for.

    They share the system's certificates with each other, and with nobody else.

    Raises:
        SettingsError: the SDK that is installed has no provider for it.
    """
    system = trusting("") if any(server.oauth for server in servers.values()) else ""
    return {
        name: ClientCredentials(name, server, server.oauth, system)
        for name, server in servers.items()
        if server.oauth is not None
    }
