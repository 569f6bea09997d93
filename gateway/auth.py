"""How a request becomes a principal. Every request is authenticated; a session id never is a credential (rule X2)."""

import hashlib
import hmac
from collections.abc import Mapping
from math import inf
from typing import Final
from urllib.parse import parse_qs

from ..mux.principal import ANONYMOUS, Principal
from ..transports.asgi import RequestHeaders
from ..transports.guard import Unauthorized
from .jwt_identity import CHALLENGE, JWTIdentity
from .proxy_identity import ProxyIdentity
from .settings import Settings
from .tickets import Tickets

METADATA: Final = "/.well-known/oauth-protected-resource"
"""Where a protected resource describes itself (RFC 9728): this, and then its own path."""


class Authenticator:
    """Verifies the identity that comes with a request's headers, in the mode of the settings."""

    def __init__(self, settings: Settings) -> None:
        auth = settings.auth
        self._mode = auth.mode
        self._tokens: dict[bytes, Principal] = {}
        self._admins: set[bytes] = set()
        for token in auth.tokens:
            digest = bytes.fromhex(token.sha256)
            self._tokens[digest] = Principal("tokens", token.tenant, token.subject)
            if token.admin:
                self._admins.add(digest)
        if settings.gateway.admin_token:
            self._admins.add(_digest(settings.gateway.admin_token))
        self._proxy = ProxyIdentity(settings.gateway.trusted_proxies, auth.subject_header, auth.tenant_header)
        self.jwt = JWTIdentity(auth) if auth.mode == "jwt" else None
        self.tickets = Tickets()
        self._public_url = settings.gateway.public_url.rstrip("/")

    def authenticate(self, headers: Mapping[str, str], *, server: str = "", tickets: bool = False) -> Principal:
        """The verified identity behind these headers (lower-case names); where it ends, `headers.expires` is set.

        With `tickets`, one for this server counts, too.

        Raises:
            Unauthorized: no token, more than one, or one that is not known. It is not told which.
        """
        if isinstance(headers, RequestHeaders) and headers.identity is not None:
            principal, headers.expires = headers.identity
            return principal
        if self._mode == "none":
            return ANONYMOUS
        ticket = _ticket(headers) if tickets else None
        try:
            principal, expires = self._redeem(ticket, server) if ticket is not None else self._identify(headers)
        except Unauthorized as error:
            raise Unauthorized(error.message, challenge=self._challenge(error.challenge, headers, server)) from None
        if isinstance(headers, RequestHeaders):
            headers.expires = expires
        return principal

    def is_admin(self, headers: Mapping[str, str]) -> bool:
        """True if the headers carry the admin token, or a token whose entry says `admin`."""
        token = _bearer(headers)
        if token is None:
            return False
        digest = _digest(token)
        return any(hmac.compare_digest(digest, admin) for admin in self._admins)

    def _identify(self, headers: Mapping[str, str]) -> tuple[Principal, float]:
        if self._mode == "proxy":
            return self._proxy.read(headers, getattr(headers, "peer", "")), inf
        token = _bearer(headers)
        if token is None:
            raise Unauthorized("send Authorization: Bearer and a token")
        digest = _digest(token)
        if self.jwt is not None:
            return self.jwt.verify(token, digest)
        principal = self._tokens.get(digest)
        if principal is None:
            raise Unauthorized("this token is not valid here", challenge=CHALLENGE)
        return principal, inf

    def _challenge(self, challenge: str, headers: Mapping[str, str], server: str) -> str:
        """With where to learn which issuer gives tokens (RFC 9728), as MCP clients expect it."""
        if self.jwt is None or not server:
            return challenge
        base = self._public_url or f"http://{headers.get('host', '')}"
        return f'{challenge}{"," if " " in challenge else ""} resource_metadata="{base}{METADATA}/servers/{server}/mcp"'

    def _redeem(self, ticket: str, server: str) -> tuple[Principal, float]:
        found = self.tickets.take(ticket, server)
        if found is None:
            raise Unauthorized("this ticket is not valid here, or was used", challenge=CHALLENGE)
        return found


def _ticket(headers: Mapping[str, str]) -> str | None:
    query = getattr(headers, "query", b"")
    if b"ticket=" not in query:
        return None
    values = parse_qs(query.decode("latin-1")).get("ticket", [])
    return values[0] if len(values) == 1 else None


def _bearer(headers: Mapping[str, str]) -> str | None:
    """The bearer token; two Authorization headers were joined by a comma and are none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token and "," not in token and " " not in token else None


def _digest(token: str) -> bytes:
    """Tokens are looked up by their hash: how long a look-up takes tells nothing about a token."""
    return hashlib.sha256(token.encode()).digest()
