"""Which of the application's middleware a message passes once: with the request that brought it, not at `/rpc` again.

The request that brings a message to a stream has passed all of it, under the same headers. What would say the same of
`/rpc`, or says nothing of it, is left out there; all else is passed again: what looks at the path or the body, counts,
limits, logs, or calls plugins, and whatever is not known here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from ...transports.asgi import ASGIApp, Receive, Scope, Send

WITHIN: Final = "trunkline.contextforge.within"
"""The scope's entry for a message that is asked of `/rpc` within the process."""

PASSED: Final = "trunkline.contextforge.passed"
"""The scope's entry for a message whose own request has passed the application's middleware."""

STATE: Final = ("bearer_token", "user")
"""What the middleware that is left out has verified and noted of a request, for those behind it."""

SCOPING: Final = "mcpgateway.main.MCPPathRewriteMiddleware"
"""For paths of Streamable HTTP. For all others it is the token scoping that ContextForge adds once more beside it."""

ONCE: Final = frozenset(
    {
        # They write on the head of an answer, and that of `/rpc` goes nowhere.
        "mcpgateway.middleware.compression.SSEAwareCompressMiddleware",
        "mcpgateway.middleware.security_headers.SecurityHeadersMiddleware",
        "starlette.middleware.cors.CORSMiddleware",
        "starlette_compress.CompressMiddleware",
        # They look at headers alone, and those are the same. The correlation id stays that of the request.
        "mcpgateway.middleware.auth_middleware.AuthContextMiddleware",
        "mcpgateway.middleware.correlation_id.CorrelationIDMiddleware",
        "mcpgateway.middleware.header_size_middleware.HeaderSizeMiddleware",
        # They guard other paths.
        "mcpgateway.main.AdminAuthMiddleware",
        "mcpgateway.main.DocsAuthMiddleware",
        "mcpgateway.middleware.password_change_enforcement.PasswordChangeEnforcementMiddleware",
        # It waits for a connection to end, and there is none.
        "mcpgateway.middleware.client_disconnect.ClientDisconnectMiddleware",
    }
)
"""Classes by their full names."""


class Added(Protocol):
    """A middleware that was added to an application, as Starlette keeps it until it is built."""

    cls: Any
    args: Any
    kwargs: Any


class Once:
    """A middleware that is left out of the way of a message which has passed it."""

    def __init__(self, app: ASGIApp, added: Added) -> None:
        self._app = app
        self._middleware: ASGIApp = added.cls(app, *added.args, **added.kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await (self._app if PASSED in scope else self._middleware)(scope, receive, send)


def may_be_once(added: Added, among: Sequence[Added]) -> bool:
    """Whether `Once` may stand around this one of an application's middleware."""
    name = f"{added.cls.__module__}.{added.cls.__qualname__}"
    scoping = _dispatch(added)
    is_twice = scoping is None or sum(_dispatch(other) is scoping for other in among) > 1
    return name in ONCE or (name == SCOPING and is_twice)


def passed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a request's middleware has noted, that which a message takes along."""
    return {name: state[name] for name in STATE if name in state}


def _dispatch(added: Added) -> Any:
    return added.kwargs.get("dispatch")
