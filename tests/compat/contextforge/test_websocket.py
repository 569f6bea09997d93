"""The relay at `/ws`, over a real socket, before an application that stands where `/rpc` is."""

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from harness.in_process import serving
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from trunkline.compat.contextforge.rpc import RPC
from trunkline.compat.contextforge.websocket import WebSocketTransport, relay
from trunkline.transports import Transport
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

pytestmark = pytest.mark.anyio


class Gateway:
    """Lets `alice` in; answers with the method, or what it heard."""

    def __init__(self, *, takes_query_token: bool = True) -> None:
        self._takes_query_token = takes_query_token
        self.authorizations: list[str] = []
        self.ended: asyncio.Queue[str] = asyncio.Queue()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = json.loads((await receive())["body"])
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.authorizations.append(headers.get("authorization", ""))
        who = headers.get("cookie") or headers.get("authorization")  # as ContextForge 0.9 has it
        allowed = who in ("Bearer alice", "jwt_token=alice")
        body = {"jsonrpc": "2.0", "id": message.get("id"), "result": {"method": message["method"]}}
        refused = 302 if headers.get("hx-request") else 401  # as ContextForge 1.0 has it
        await send({"type": "http.response.start", "status": 200 if allowed else refused, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    async def serve(self, websocket: WebSocket) -> None:
        await relay(
            websocket, RPC(self), max_inflight=4, ended=self.ended.put, takes_query_token=self._takes_query_token
        )


@asynccontextmanager
async def relayed(gateway: Gateway) -> AsyncIterator[str]:
    app = Starlette(routes=[WebSocketRoute("/ws", gateway.serve)])
    async with serving(app, ws="websockets-sansio") as port:
        yield f"ws://127.0.0.1:{port}/ws"


async def ask(socket: ClientConnection, text: str) -> Any:
    await socket.send(text)
    return json.loads(await asyncio.wait_for(socket.recv(), 10))


PING = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"})


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_client_speaks_as_whom_its_token_says(by_header: bool) -> None:
    gateway = Gateway()
    async with relayed(gateway) as url:
        headers = {"Authorization": "Bearer alice"} if by_header else {}
        async with connect(
            url + ("" if by_header else "?token=alice"), additional_headers=headers, subprotocols=["mcp"], proxy=None
        ) as socket:
            assert socket.subprotocol == "mcp"
            assert (await ask(socket, PING))["result"] == {"method": "ping"}
            assert (await ask(socket, "no json"))["error"]["code"] == -32700
            await socket.send(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            assert (await ask(socket, PING))["id"] == 1
        assert await asyncio.wait_for(gateway.ended.get(), 10)
    assert set(gateway.authorizations) == {"Bearer alice"}


@pytest.mark.parametrize("headers", [{}, {"HX-Request": "true"}])
async def test_who_may_not_come_in_is_refused_before_the_socket_is_open(headers: dict[str, str]) -> None:
    async with relayed(Gateway()) as url:
        with pytest.raises(InvalidStatus):
            await connect(url, additional_headers=headers, proxy=None)


async def test_a_token_in_the_url_is_nothing_where_the_gateway_refuses_it() -> None:
    gateway = Gateway(takes_query_token=False)
    async with relayed(gateway) as url:
        with pytest.raises(InvalidStatus):
            await connect(url + "?token=alice", proxy=None)
        headers = {"Authorization": "Bearer alice"}
        async with connect(url, additional_headers=headers, proxy=None) as socket:
            assert (await ask(socket, PING))["id"] == 1


async def test_a_cookie_proves_nobody_on_a_socket() -> None:
    async with relayed(Gateway()) as url:
        with pytest.raises(InvalidStatus):
            await connect(url, additional_headers={"Cookie": "jwt_token=alice"}, proxy=None)
        headers = {"Authorization": "Bearer alice", "Cookie": "jwt_token=bob"}
        async with connect(url, additional_headers=headers, proxy=None) as socket:
            assert (await ask(socket, PING))["id"] == 1


async def test_a_binary_frame_ends_the_socket() -> None:
    gateway = Gateway()
    async with relayed(gateway) as url, connect(url + "?token=alice", proxy=None) as socket:
        await socket.send(b"\x00")
        await asyncio.wait_for(socket.wait_closed(), 10)
        assert await asyncio.wait_for(gateway.ended.get(), 10)


@pytest.mark.parametrize("text", [PING, "no json"])
async def test_who_leaves_before_its_answers_is_nothing_to_log(text: str, caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway()
    async with relayed(gateway) as url:
        for _ in range(3):
            async with connect(url + "?token=alice", proxy=None) as socket:
                for _ in range(20):
                    await socket.send(text)
            assert await asyncio.wait_for(gateway.ended.get(), 10)
    gc.collect()  # as tasks whose failure nobody heard of are told
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_the_shape_is_the_one_that_contextforge_has() -> None:
    transport = WebSocketTransport(WebSocket({"type": "websocket"}, None, None))  # type: ignore[arg-type]
    assert isinstance(transport, Transport)
    assert not await transport.is_connected()
    await transport.disconnect()
    with pytest.raises(RuntimeError, match="Transport not connected"):
        await transport.send_message({})
    with pytest.raises(RuntimeError, match="Transport not connected"):
        await anext(transport.receive_message())
