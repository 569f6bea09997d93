"""How a request becomes a principal. Every request is authenticated; a session id never is a credential (rule X2)."""

import hashlib
import hmac
from collections.abc import Mapping

from ..mux.principal import ANONYMOUS, Principal
from ..transports.guard import Unauthorized
from .settings import Settings


class Authenticator:
    """Verifies the identity that comes with a request's headers, in the mode of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._mode = settings.auth.mode
        self._tokens: dict[bytes, Principal] = {}
        self._admins: set[bytes] = set()
        for token in settings.auth.tokens:
            digest = bytes.fromhex(token.sha256)
            self._tokens[digest] = Principal("tokens", token.tenant, token.subject)
            if token.admin:
                self._admins.add(digest)
        if settings.gateway.admin_token:
            self._admins.add(_digest(settings.gateway.admin_token))

    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """The verified identity behind these headers (lower-case names).

        Raises:
            Unauthorized: no token, more than one, or one that is not known. It is not told which.
        """
        if self._mode == "none":
            return ANONYMOUS
        token = _bearer(headers)
        if token is None:
            raise Unauthorized("send Authorization: Bearer and a token")
        principal = self._tokens.get(_digest(token))
        if principal is None:
            raise Unauthorized("this token is not valid here", challenge='Bearer error="invalid_token"')
        return principal

    def is_admin(self, headers: Mapping[str, str]) -> bool:
        """True if the headers carry the admin token, or a token whose entry says `admin`."""
        token = _bearer(headers)
        if token is None:
            return False
        digest = _digest(token)
        return any(hmac.compare_digest(digest, admin) for admin in self._admins)


def _bearer(headers: Mapping[str, str]) -> str | None:
    """The bearer token; two Authorization headers were joined by a comma and are none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token and "," not in token and " " not in token else None


def _digest(token: str) -> bytes:
    """Tokens are looked up by their hash: how long a look-up takes tells nothing about a token."""
    return hashlib.sha256(token.encode()).digest()
