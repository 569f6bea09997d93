"""The route of messages from within: the application's own, whatever stands before it."""

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Route, Router
from trunkline.compat.contextforge.asked import Incoming
from trunkline.compat.contextforge.direct import PATH, DirectRoute, shorten
from trunkline.compat.contextforge.once import WITHIN
from trunkline.compat.contextforge.rpc import RPC

pytestmark = pytest.mark.anyio

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
SENT = Incoming({"type": "http", "scheme": "http"}, {})


class Counted(Route):
    """A route that counts how often it is looked at."""

    looks = 0

    def matches(self, scope: Any) -> Any:
        self.looks += 1
        return super().matches(scope)


def answering(name: str) -> Any:
    async def answer(request: Request) -> Response:
        return JSONResponse({"jsonrpc": "2.0", "id": 1, "result": {"by": name, **request.path_params}})

    return answer


def direct(*routes: BaseRoute) -> Starlette:
    """An application with these routes and the direct one."""
    app = Starlette(routes=list(routes))
    shorten(app)
    return app


async def by(app: Starlette) -> Any:
    """Who answers a message from within; None for nobody."""
    answer = await RPC(app).ask(PING, SENT, "stream")
    assert answer is not None
    return answer.get("result")


async def test_other_routes_are_looked_at_once() -> None:
    other = Counted("/tools", answering("tools"))
    app = direct(other, Route(PATH, answering("rpc"), methods=["POST"]))
    assert [await by(app) for _ in range(3)] == [{"by": "rpc"}] * 3
    assert other.looks == 1


async def test_the_first_that_takes_a_post_has_it_as_in_the_router_itself() -> None:
    reads = Route(PATH, answering("reads"), methods=["GET"])
    app = direct(reads, Route("/{any}", answering("first"), methods=["POST"]), Route(PATH, answering("second")))
    assert await by(app) == {"by": "first", "any": "rpc"}
    assert await by(app) == {"by": "first", "any": "rpc"}


async def test_a_route_that_is_added_later_is_found() -> None:
    app = direct(Route("/tools", answering("tools")))
    assert await by(app) is None
    app.router.routes.append(Route(PATH, answering("rpc"), methods=["POST"]))
    assert await by(app) == {"by": "rpc"}


async def test_requests_from_outside_do_not_see_it() -> None:
    route = DirectRoute([Route(PATH, answering("rpc"), methods=["POST"])], PATH)
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
    assert route.matches(scope) == (Match.NONE, {})
    assert route.matches({**scope, WITHIN: True})[0] is Match.FULL


async def test_a_router_within_the_application_is_led_through() -> None:
    class Included(BaseRoute):
        """As newer versions of FastAPI hold a router that was included."""

        router = Router(routes=[Route(PATH, answering("inner"), methods=["POST"])])

        def matches(self, scope: Any) -> Any:
            return self.router.routes[0].matches(scope)[0], {}

        async def handle(self, scope: Any, receive: Any, send: Any) -> None:
            await self.router(scope, receive, send)

    app = direct(Included())
    assert [await by(app) for _ in range(2)] == [{"by": "inner"}] * 2
