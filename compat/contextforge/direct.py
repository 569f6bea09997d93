"""The short way of messages from within to `/rpc`: its route is found once, and not among hundreds each time."""

from typing import Any, Final

from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from .once import WITHIN, Once, may_be_once
from .whole import Whole, is_whole

PATH: Final = "/rpc"


class DirectRoute(BaseRoute):
    """Leads messages from within to the route that takes them: put before the others. Nothing else sees it.

    `path` is that of the messages. Who takes them is looked up again where routes have been added.
    """

    def __init__(self, routes: list[Any], path: str) -> None:
        self.path = path
        self._routes = routes
        self._found: tuple[BaseRoute, Scope] | None = None
        self._among = 0

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See `BaseRoute.matches`."""
        if WITHIN not in scope:
            return Match.NONE, {}
        if self._among != len(self._routes):
            self._among, self._found = len(self._routes), self._find(scope)
        if self._found is None:
            return Match.NONE, {}
        added = self._found[1]
        return Match.FULL, {**added, "path_params": dict(added.get("path_params", {}))}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `BaseRoute.handle`."""
        assert self._found is not None, "it has matched"
        await self._found[0].handle(scope, receive, send)

    def _find(self, scope: Scope) -> tuple[BaseRoute, Scope] | None:
        """The first that matches wholly, as Starlette's router chooses, and what it adds to the scope."""
        for route in self._routes:
            if route is not self:
                match, added = route.matches(scope)
                if match is Match.FULL:
                    return route, added
        return None


def shorten(app: Any) -> None:
    """Shorten the way of messages from within, as soon as all that is on it is there.

    That is when Starlette builds the way through the middleware, before the first request.
    """
    stock = app.build_middleware_stack

    def build_middleware_stack() -> Any:
        middleware = app.user_middleware
        once = [may_be_once(added, middleware) for added in middleware]
        for place, added in enumerate(middleware):
            if is_whole(added):
                middleware[place] = added = type(added)(Whole, added=added)
            if once[place]:
                middleware[place] = type(added)(Once, added=added)
        app.router.routes.insert(0, DirectRoute(app.router.routes, PATH))
        return stock()

    app.build_middleware_stack = build_middleware_stack
