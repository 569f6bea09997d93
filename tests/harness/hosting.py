"""Applications of one's own on a `Host`, and where they listen."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from trunkline.transports import Host, Transport

from harness.in_process import serving

OPENED = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "t", "version": "1"}}


def log(data: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": data}}


def answer(message: dict[str, Any], result: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": message["id"], "result": result}


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """An ASGI application under uvicorn; where it listens."""
    async with serving(app, ws="websockets-sansio") as port:
        yield f"127.0.0.1:{port}"


def mounted(host: Host) -> Starlette:
    return Starlette(routes=[Mount("/tools", host)], lifespan=host.lifespan)


class Application:
    """Answers every call with the class and the state of its conversation; each conversation is kept for the test."""

    def __init__(self) -> None:
        self.conversations: list[Transport] = []
        self.received: list[dict[str, Any]] = []
        self.ended = 0

    async def serve(self, transport: Transport) -> None:
        self.conversations.append(transport)
        calls = 0
        with pytest.raises(RuntimeError, match="not connected"):
            await transport.send_message({"jsonrpc": "2.0", "method": "notifications/early"})
        await transport.connect()
        try:
            async for message in transport.receive_message():
                self.received.append(message)
                if message.get("method") == "initialize":
                    result: dict[str, Any] = OPENED | {"protocolVersion": message["params"]["protocolVersion"]}
                elif message.get("method") == "tools/call":
                    calls += 1
                    await transport.send_message(log(calls), request_id=message["id"])
                    result = {"content": [{"type": "text", "text": f"{type(transport).__name__} {calls}"}]}
                else:
                    continue
                await transport.send_message(answer(message, result))
        finally:
            self.ended += 1
