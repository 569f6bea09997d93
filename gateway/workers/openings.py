"""What of a request goes to another worker: all of it but its body, and who asks."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from ...mux.principal import Principal
from ...transports.asgi import HOPS, IDENTITY, MEANT, Scope
from ...transports.websocket import PING

_SCOPE: Final = (
    "type",
    "method",
    "path",
    "root_path",
    "query_string",
    "headers",
    "scheme",
    "http_version",
    "client",
    "server",
    "subprotocols",
)
_LENT: Final = ("websocket.http.response",)
"""Extensions that need nothing but events."""
_UNREAD: Final = frozenset({b"cookie", b"proxy-authorization"})
"""Headers that prove who asks, but not here: a directory may be what carries a request, and a database has logs."""
_CREDENTIALS: Final = frozenset({b"authorization"}) | _UNREAD


def opening(
    scope: Scope, identity: tuple[Principal, float] | None = None, *, is_let_in: bool = False
) -> dict[str, Any]:
    """What begins a conversation: the request without its body; `identity` is who asks, where that was verified.

    Where it was, or it `is_let_in` without one, the other worker has nothing to verify: its token does not go along.
    """
    extensions, identity = scope.get("extensions") or {}, identity or scope.get(IDENTITY)
    secret = _UNREAD if identity is None and not is_let_in else _CREDENTIALS
    return {
        **{name: scope[name] for name in _SCOPE if name in scope},
        "headers": [header for header in scope.get("headers", ()) if header[0] not in secret],
        "extensions": [name for name in (*_LENT, PING) if name in extensions],
        "identity": identity,
        "meant": scope.get(MEANT),
        "hops": scope.get(HOPS, 0) + 1,
    }


def scope_of(opening: dict[str, Any], ping: Callable[[], Awaitable[None]]) -> Scope:
    """The request that a conversation begins with, for the application here; `ping` reaches the client's socket."""
    identity, hops, meant = opening.pop("identity"), opening.pop("hops"), opening.pop("meant")
    scope: Scope = {**opening, "asgi": {"version": "3.0"}, HOPS: hops, MEANT: meant}
    scope["extensions"] = {name: ping if name == PING else {} for name in opening["extensions"]}
    if identity is not None:
        principal, expires = identity
        scope[IDENTITY] = Principal(**principal), expires
    return scope
