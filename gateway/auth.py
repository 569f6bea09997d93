"""How a request becomes a principal. Every request is authenticated; a session id never is a credential (rule X2)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import msgspec

from ..mux.errors import Overloaded
from ..mux.principal import ANONYMOUS, Principal
from ..transports.asgi import GRANT, Grant, RequestHeaders, Scope, headers_of
from ..transports.headers import MAX_QUERY_FIELDS
from ..transports.status import INVALID_CREDENTIAL, Unauthorized
from .proxy_identity import ProxyIdentity
from .settings import AuthSection, Settings
from .tickets import Identity, Tickets

if TYPE_CHECKING:
    from .jwt_identity import JWTIdentity

METADATA: Final = "/.well-known/oauth-protected-resource"
"""Where a protected resource describes itself (RFC 9728): this, and then its own path."""


class Authenticator:
    """Verifies the identity that comes with a request's headers, in the mode of the settings.

    `before` is the one that it is to replace: what was opened by a credential that goes on to count stays open.
    """

    def __init__(self, settings: Settings, before: Authenticator | None = None) -> None:
        auth = settings.auth
        self._mode = auth.mode
        self._issuer = auth.issuer if auth.mode == "jwt" else auth.mode
        self._rules = _rules(settings)
        same = before if before is not None and before._rules == self._rules else None
        self._grant: Grant = same._grant if same is not None else Grant()
        """Of all who are verified by the same rules; each token of the file has its own."""
        self._anonymous = Identity(ANONYMOUS, inf, self._grant)
        self._tokens: dict[bytes, Identity] = {}
        self._admins: dict[bytes, Grant] = {}
        """By the hash of the token, what is opened by it."""
        for token in auth.tokens:
            digest = bytes.fromhex(token.sha256)
            identity = Identity(Principal("tokens", token.tenant, token.subject), inf, Grant())
            known = same._tokens.get(digest) if same is not None else None
            self._tokens[digest] = known if known is not None and known.principal == identity.principal else identity
            if token.admin:
                self._admins[digest] = Grant()
        self._known = frozenset(identity.principal for identity in self._tokens.values())
        if settings.gateway.admin_token:
            self._admins[_digest(settings.gateway.admin_token)] = Grant()
        if before is not None:
            self._admins |= {digest: grant for digest, grant in before._admins.items() if digest in self._admins}
        self._proxy = ProxyIdentity(settings.gateway.trusted_proxies, auth.subject_header, auth.tenant_header)
        self.jwt = _jwt_identity(auth) if auth.mode == "jwt" else None
        if same is not None and same.jwt is not None and not same.jwt.keys.is_file:
            self.jwt = same.jwt
        elif self.jwt is not None and before is not None and before.jwt is not None:
            self.jwt.keys.follow(before.jwt.keys)
        self.tickets: Tickets = Tickets() if before is None else before.tickets
        self._public_url = settings.gateway.public_url.rstrip("/")
        self._scheme = "https" if settings.gateway.tls.cert else "http"

    def authenticate(self, headers: Mapping[str, str], *, server: str = "", tickets: bool = False) -> Principal:
        """The verified identity behind these headers (lower-case names).

        `headers.expires` is set to when it ends, `headers.grant` to what may end it before. With `tickets`, one for
        this server counts, too.

        Raises:
            Unauthorized: no token, more than one, or one that is not known. It is not told which.
            Overloaded: nobody can tell now.
        """
        request = headers if isinstance(headers, RequestHeaders) else None
        if request is not None and request.identity is not None:
            principal, request.expires = request.identity
            return principal
        ticket = _ticket(headers) if tickets and self._mode != "none" else None
        try:
            identity = self._redeem(ticket, server) if ticket is not None else self._identify(headers)
        except Unauthorized as error:
            raise Unauthorized(error.message, challenge=self._challenge(error.challenge, headers, server)) from None
        if request is not None:
            request.expires, request.grant = identity.expires, identity.grant
        return identity.principal

    def identify(self, scope: Scope) -> tuple[Principal, float] | None:
        """Who sends a request that another worker is to take, and until when that is known; None where it is refused.

        In the scope it is noted by what the request may keep something open.
        """
        headers = headers_of(scope)
        try:
            principal = self.authenticate(headers)
        except (Unauthorized, Overloaded):
            return None
        scope[GRANT] = headers.grant
        return principal, headers.expires

    def knows(self, principal: Principal) -> bool:
        """False where no credential could stand for this identity (any longer), whoever brings it."""
        if self._mode == "tokens":
            return principal in self._known
        return principal.is_anonymous if self._mode == "none" else principal.issuer == self._issuer

    def give_way(self, after: Authenticator) -> None:
        """End what was opened by credentials that do not count with the one that replaces it."""
        for grant in self._grants - after._grants:
            grant.withdraw()

    @property
    def _grants(self) -> set[Grant]:
        return {self._grant, *(identity.grant for identity in self._tokens.values()), *self._admins.values()}

    @property
    def anonymous_grant(self) -> Grant:
        """What is opened by nobody in particular, where that is enough: it ends when another mode holds."""
        return self._grant

    def admin_grant(self, headers: Mapping[str, str]) -> Grant | None:
        """What is opened by the admin token, or by a token whose entry says `admin`; None without one of them."""
        token = _bearer(headers)
        digest = _digest(token) if token is not None else b""
        return next((grant for admin, grant in self._admins.items() if hmac.compare_digest(digest, admin)), None)

    def _identify(self, headers: Mapping[str, str]) -> Identity:
        if self._mode == "none":
            return self._anonymous
        if self._mode == "proxy":
            return Identity(self._proxy.read(headers, getattr(headers, "peer", "")), inf, self._grant)
        token = _bearer(headers)
        if token is None:
            raise Unauthorized("send Authorization: Bearer and a token")
        digest = _digest(token)
        if self.jwt is not None:
            principal, expires = self.jwt.verify(token, digest)
            return Identity(principal, expires, self._grant)
        identity = self._tokens.get(digest)
        if identity is None:
            raise Unauthorized("this token is not valid here", challenge=INVALID_CREDENTIAL)
        return identity

    def _challenge(self, challenge: str, headers: Mapping[str, str], server: str) -> str:
        """With where to learn which issuer gives tokens (RFC 9728), as MCP clients expect it."""
        if self.jwt is None or not server:
            return challenge
        base = self._public_url or f"{self._scheme}://{headers.get('host', '')}"
        return f'{challenge}{"," if " " in challenge else ""} resource_metadata="{base}{METADATA}/servers/{server}/mcp"'

    def _redeem(self, ticket: str, server: str) -> Identity:
        found = self.tickets.take(ticket, server)
        if found is None:
            raise Unauthorized("this ticket is not valid here, or was used", challenge=INVALID_CREDENTIAL)
        return found


def _jwt_identity(auth: AuthSection) -> JWTIdentity:
    from .jwt_identity import JWTIdentity  # whose packages take a good part of a start, and of the memory after it

    return JWTIdentity(auth)


def _rules(settings: Settings) -> tuple[object, ...]:
    """What decides who somebody is, but for the tokens that are listed one by one."""
    match settings.auth.mode:
        case "jwt":
            return "jwt", msgspec.structs.replace(settings.auth, tokens=())
        case "proxy":
            auth = settings.auth
            return "proxy", settings.gateway.trusted_proxies, auth.subject_header, auth.tenant_header
        case mode:
            return (mode,)


def _ticket(headers: Mapping[str, str]) -> str | None:
    query = getattr(headers, "query", b"")
    if b"ticket=" not in query:
        return None
    try:
        values = parse_qs(query.decode("latin-1"), max_num_fields=MAX_QUERY_FIELDS).get("ticket", [])
    except ValueError:
        return None
    return values[0] if len(values) == 1 else None


def _bearer(headers: Mapping[str, str]) -> str | None:
    """The bearer token; two Authorization headers were joined by a comma and are none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token and "," not in token and " " not in token else None


def _digest(token: str) -> bytes:
    """Tokens are looked up by their hash: how long a look-up takes tells nothing about a token."""
    return hashlib.sha256(token.encode()).digest()
