"""Who asks, and in which session: read for each message, never kept from the one that opened the session."""

import base64
import binascii
import json
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from ...mux.limits import Reuse
from ...mux.principal import Principal

ISSUER: Final = "contextforge"
NOBODY: Final = frozenset({"", "anonymous", "none", "unknown"})
"""What ContextForge calls a caller whom it has not verified."""

PUBLIC: Final = "public"
"""Where a token is limited to no team: it sees what is public, and one without a limit sees more."""

SESSION_HEADERS: Final = ("x-mcp-session-id", "mcp-session-id")
"""Where a request names its session, the most trusted first."""

KEY_HEADER: Final = "trunkline-workflow"
KEY: Final = "\n"
"""Before a key that a client chose: no header holds it, so that nobody ends a key, or hears it, as a session's id."""


class Asked(NamedTuple):
    """One call on its way through ContextForge."""

    principal: Principal
    session: str
    """The client's session, a secret; a key that the client chose, after `KEY`; empty where it has neither."""
    is_carried: bool = False
    """True where a stream or socket carries the message, which is its session then."""

    @property
    def is_verified(self) -> bool:
        """True where ContextForge has verified who asks."""
        return self.principal.subject != ""

    @property
    def has_key(self) -> bool:
        """True where a key of the client's own names its session."""
        return self.session.startswith(KEY)

    @property
    def session_id(self) -> str:
        """The session over Streamable HTTP, where its client may listen by a GET; empty where there is none."""
        return "" if self.has_key or self.is_carried else self.session

    def may_share(self, reuse: Reuse) -> bool:
        """Whether what it asks for may meet in a session with what it asks for later: nobody else may then.

        A session's id is a secret. A key, or a user whom ContextForge has not verified, could be anybody's.
        """
        return self.is_verified if reuse == "user" or self.has_key else self.session != ""


class Incoming(NamedTuple):
    """The HTTP request or socket that a message came on."""

    scope: Mapping[str, Any]
    headers: Mapping[str, str]
    """By lower-case name."""
    has_passed: bool = False
    """True where it has come through the application's middleware, with this message alone."""


incoming: ContextVar[Incoming | None] = ContextVar("trunkline.contextforge.incoming", default=None)
carried_by: ContextVar[str] = ContextVar("trunkline.contextforge.carried_by", default="")
"""The session id of the stream or socket that carries this message; empty over plain HTTP."""


def read_headers(scope: Mapping[str, Any]) -> dict[str, str]:
    """The headers of an ASGI scope, by lower-case name."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers") or ()}


def session_of(headers: Mapping[str, str] | None) -> str:
    """The client's session: that of the stream which carries the message, else what its headers name."""
    if carried_by.get():
        return carried_by.get()
    lowered = {name.lower(): value for name, value in (headers or {}).items()}
    key = lowered.get(KEY_HEADER)
    return next((lowered[name] for name in SESSION_HEADERS if lowered.get(name)), f"{KEY}{key}" if key else "")


def principal_of(email: object, teams: object, headers: Mapping[str, str] | None) -> Principal:
    """The identity that ContextForge has verified for this message.

    The tenant is the user with the teams that the token is limited to: no two users have anything in common, since the
    headers and credentials that a server gets are those of each. `teams` is None where the gateway does not tell them,
    and then they are read from the very token that it has verified; they can only keep identities apart.
    """
    told = teams if isinstance(teams, list | tuple) else _claims(headers).get("teams")
    user = name_of(email)
    if user.lower() in NOBODY:  # by whatever name: it differs between a tool, a resource and a prompt
        user = ""
    return Principal(ISSUER, f"{user} {_teams(told)}", user)


def name_of(user: object) -> str:
    """A user as ContextForge has them, by a name or by what a token says; empty where there is none."""
    if isinstance(user, Mapping):
        user = user.get("email") or user.get("sub")
    return str(user or "")


def _teams(teams: object) -> str:
    if not isinstance(teams, list | tuple):
        return ""
    names = (team.get("id") if isinstance(team, Mapping) else team for team in teams)
    return ",".join(sorted(str(name) for name in names)) or PUBLIC


def _claims(headers: Mapping[str, str] | None) -> Mapping[str, Any]:
    """What the bearer token of a request says; nothing where there is none."""
    lowered = {name.lower(): value for name, value in (headers or {}).items()}
    scheme, _, token = lowered.get("authorization", "").partition(" ")
    parts = token.split(".")
    if scheme.lower() != "bearer" or len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return {}
    return claims if isinstance(claims, Mapping) else {}
