"""A middleware on the way of messages from within sees, and may do, what it sees and does as Starlette runs it."""

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from trunkline.compat.contextforge.asked import Incoming
from trunkline.compat.contextforge.direct import shorten
from trunkline.compat.contextforge.rpc import RPC
from trunkline.compat.contextforge.whole import is_whole

pytestmark = pytest.mark.anyio

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
SENT = Incoming({"type": "http", "scheme": "http"}, {"x-who": "alice"})


class Theirs(BaseHTTPMiddleware):
    """One of ContextForge's, as far as can be seen."""


Theirs.__module__ = "mcpgateway.middleware.theirs"


async def answer(request: Request) -> Response:
    body = await request.json()
    if body["method"] == "fail":
        raise LookupError("inside")
    return JSONResponse({"jsonrpc": "2.0", "id": body["id"], "result": {"who": request.headers["x-who"]}})


async def reads(request: Request, call_next: Any) -> Response:
    assert (await request.json())["id"] == 1
    response: Response = await call_next(request)
    return response


async def renames(request: Request, call_next: Any) -> Response:
    request.scope["headers"] = [(b"x-who", b"bob")]
    response: Response = await call_next(request)
    return response


async def refuses(request: Request, call_next: Any) -> Response:
    return JSONResponse({"detail": "no"}, status_code=403)


async def replaces(request: Request, call_next: Any) -> Response:
    response = await call_next(request)
    parts = [part async for part in response.body_iterator]

    async def changed() -> Any:
        yield b"".join(parts).replace(b"alice", b"*****")

    response.body_iterator = changed()
    del response.headers["content-length"]
    found: Response = response
    return found


async def hides(request: Request, call_next: Any) -> Response:
    try:
        response: Response = await call_next(request)
    except LookupError as error:
        return JSONResponse({"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": str(error)}})
    response.headers["x-seen"] = str(response.status_code)
    return response


def gateway(dispatch: Any, *, is_short: bool) -> Starlette:
    app = Starlette(routes=[Route("/rpc", answer, methods=["POST"])])
    dispatch.__module__ = Theirs.__module__
    app.add_middleware(Theirs, dispatch=dispatch)
    if is_short:
        shorten(app)
    return app


@pytest.mark.parametrize("method", ["ping", "fail"])
@pytest.mark.parametrize("dispatch", [reads, renames, refuses, replaces, hides])
async def test_what_it_does_comes_out_as_it_does_in_starlette(dispatch: Any, method: str) -> None:
    came = []
    for is_short in (False, True):
        try:
            came.append(await RPC(gateway(dispatch, is_short=is_short)).ask({**PING, "method": method}, SENT, "stream"))
        except LookupError as error:
            came.append({"raised": str(error)})
    assert came[0] == came[1]
    if method == "ping":
        due = {reads: "alice", renames: "bob", replaces: "*****", hides: "alice", refuses: None}
        assert came[0] is not None
        assert came[0].get("result", {}).get("who") == due[dispatch]


async def test_no_task_is_begun_on_the_way() -> None:
    tasks: list[Any] = []

    async def looks(request: Request, call_next: Any) -> Response:
        tasks.append(asyncio.current_task())
        response: Response = await call_next(request)
        return response

    async def ends(request: Request) -> Response:
        tasks.append(asyncio.current_task())
        return JSONResponse({"jsonrpc": "2.0", "id": 1, "result": {}})

    looks.__module__ = Theirs.__module__
    app = Starlette(routes=[Route("/rpc", ends, methods=["POST"])])
    for _ in range(3):
        app.add_middleware(Theirs, dispatch=looks)
    shorten(app)
    await RPC(app).ask(PING, SENT, "stream")
    assert tasks == [asyncio.current_task()] * 4


def test_only_those_are_meant_that_starlette_itself_would_call_and_contextforge_has_made() -> None:
    class Elsewhere(BaseHTTPMiddleware):
        """Another's."""

    class Streams(BaseHTTPMiddleware):
        """One that is called in its own way."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            raise AssertionError("it is never built")

    Streams.__module__ = Theirs.__module__

    class Scoping:
        """One whose instance decides."""

        async def __call__(self, request: Request, call_next: Any) -> Response:
            raise AssertionError("it is never built")

    Scoping.__module__ = Theirs.__module__
    assert is_whole(Middleware(Theirs))
    assert is_whole(Middleware(BaseHTTPMiddleware, dispatch=Scoping()))
    assert not is_whole(Middleware(Elsewhere))
    assert not is_whole(Middleware(Streams))
    assert not is_whole(Middleware(BaseHTTPMiddleware, dispatch=answer))
