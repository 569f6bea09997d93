"""What a message passes with its own request, and what it passes again at `/rpc`."""

from functools import partial
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from trunkline.compat.contextforge.asked import Incoming
from trunkline.compat.contextforge.direct import shorten
from trunkline.compat.contextforge.once import ONCE, SCOPING, may_be_once
from trunkline.compat.contextforge.rpc import RPC

pytestmark = pytest.mark.anyio

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
AUTHENTICATION = "mcpgateway.middleware.auth_middleware.AuthContextMiddleware"


class Noted:
    """A middleware that notes whom it has let through, and what was known of the user by then."""

    def __init__(self, app: Any, name: str, seen: list[str], dispatch: object = None) -> None:
        self._app = app
        self._name = name
        self._seen = seen

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self._seen.append(self._name)
        await self._app(scope, receive, send)


def named(name: str) -> type[Noted]:
    """A class that has this full name."""
    module, _, short = name.rpartition(".")
    return type(short, (Noted,), {"__module__": module, "__qualname__": short})


def sent(*, has_passed: bool, **state: Any) -> Incoming:
    scope = {"type": "http", "scheme": "http", "client": ("10.0.0.1", 5), "server": ("h", 1), "state": state}
    return Incoming(scope, {"authorization": "Bearer a"}, has_passed)


class Gateway:
    """An application with the middleware of these names, in this order."""

    def __init__(self, *names: str, dispatch: object = None) -> None:
        self.seen: list[str] = []
        self.state: dict[str, Any] = {}
        self.app = Starlette(routes=[Route("/rpc", self._answer, methods=["POST"])])
        added = partial(Middleware, seen=self.seen, dispatch=dispatch)
        self.app.user_middleware[:] = [added(named(name), name=name) for name in names]
        shorten(self.app)

    async def _answer(self, request: Request) -> Response:
        self.state = dict(request.scope["state"])
        return JSONResponse({"jsonrpc": "2.0", "id": 1, "result": {}})

    async def passes(self, came: Incoming) -> list[str]:
        """Which middleware one message passes."""
        self.seen.clear()
        answer = await RPC(self.app).ask(PING, came, "stream")
        assert answer is not None
        assert answer["result"] == {}
        return list(self.seen)


@pytest.mark.parametrize("name", sorted(ONCE))
async def test_what_says_nothing_more_is_left_out_for_a_message_whose_request_has_passed_it(name: str) -> None:
    gateway = Gateway("counting.Limits", name, "mcpgateway.middleware.token_scoping.Scoping")
    kept = ["counting.Limits", "mcpgateway.middleware.token_scoping.Scoping"]
    assert await gateway.passes(sent(has_passed=True)) == kept
    assert await gateway.passes(sent(has_passed=False)) == [kept[0], name, kept[1]]


async def test_what_the_request_proved_goes_along_and_nothing_else_that_was_noted_of_it() -> None:
    gateway = Gateway(AUTHENTICATION)
    await gateway.passes(sent(has_passed=True, user="alice", bearer_token="a", db=object(), request_id="1"))
    assert gateway.state == {"user": "alice", "bearer_token": "a"}
    await gateway.passes(sent(has_passed=False, user="alice"))
    assert gateway.state == {}


async def test_what_is_scoped_twice_is_scoped_once() -> None:
    def scoping() -> None:
        """Stands for ContextForge's own."""

    twice = Gateway(SCOPING, "starlette.middleware.base.BaseHTTPMiddleware", dispatch=scoping)
    assert await twice.passes(sent(has_passed=True)) == ["starlette.middleware.base.BaseHTTPMiddleware"]
    once = Gateway(SCOPING, dispatch=scoping)
    assert await once.passes(sent(has_passed=True)) == [SCOPING]
    none = Gateway(SCOPING)
    assert await none.passes(sent(has_passed=True)) == []


def test_a_middleware_of_the_same_name_elsewhere_stays() -> None:
    async def dispatch(request: Request, call_next: Any) -> Response:
        raise AssertionError("it is never built")

    added = [Middleware(named("elsewhere.AuthContextMiddleware")), Middleware(BaseHTTPMiddleware, dispatch=dispatch)]  # type: ignore[arg-type]
    assert not any(may_be_once(one, added) for one in added)


async def test_a_request_from_outside_passes_all_even_if_it_says_otherwise() -> None:
    gateway = Gateway(AUTHENTICATION)
    answers: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(event: Any) -> None:
        answers.append(event)

    headers = [(b"trunkline.contextforge.passed", b"1"), (b"trunkline-contextforge-passed", b"1")]
    scope = {"type": "http", "method": "POST", "path": "/rpc", "query_string": b"", "headers": headers, "state": {}}
    await gateway.app(scope, receive, send)
    assert gateway.seen == [AUTHENTICATION]
    assert answers[0]["status"] == 200


async def test_a_middleware_keeps_its_arguments() -> None:
    app = Starlette(routes=[Route("/rpc", lambda request: JSONResponse({"id": 1, "result": {}}), methods=["POST"])])
    app.add_middleware(CORSMiddleware, allow_origins=["https://a.example"])
    shorten(app)
    headers: list[Any] = []

    async def send(event: Any) -> None:
        headers.extend(event.get("headers", ()))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    asked = [(b"origin", b"https://a.example")]
    scope = {"type": "http", "method": "POST", "path": "/rpc", "query_string": b"", "headers": asked}
    await app(scope, receive, send)
    assert (b"access-control-allow-origin", b"https://a.example") in headers
